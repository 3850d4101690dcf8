"""Fit the score of regions on drawn photos, and look at the weights that are shipped."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.datasets import open_dataset
from proposals import objectness
from proposals.ranking import FEATURES, score
from tests.sources import REPOSITORY
from tests.test_datasets import load_tool

TOOL = REPOSITORY / "tools" / "fit_objectness.py"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 12 drawn photos, 3 of them for testing."""
    folder = tmp_path_factory.mktemp("data") / "toy"
    load_tool("make_toy").make_toy(folder, images=12, seed=9)
    return folder


def fit(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_fit_tells_objects_from_the_rest(toy: Path, tmp_path: Path) -> None:
    for name in ("first.py", "second.py"):
        done = fit(f"voc:{toy}:train", "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "first.py").read_bytes() == (tmp_path / "second.py").read_bytes()
    weights = runpy.run_path(str(tmp_path / "first.py"))
    assert weights["HIDDEN"].shape == objectness.HIDDEN.shape
    assert weights["OUTPUT"].shape == objectness.OUTPUT.shape
    assert "on 9 photos of toy train, seed 1." in weights["__doc__"]
    for sample in open_dataset(f"voc:{toy}:test"):  # photos that were not fitted
        features, objects = load_tool("fit_objectness").describe_photo(sample)
        scores = torch.from_numpy(score(features.numpy(), weights["HIDDEN"], weights["OUTPUT"]))
        positives, negatives = scores[objects >= 0], scores[objects < 0]
        assert min(len(positives), len(negatives)) > 10
        assert (positives[:, None] > negatives).float().mean() > 0.9, "area under the ROC curve"


def test_regions_belong_to_the_object_that_they_overlap_by_half(toy: Path) -> None:
    for sample in open_dataset(f"voc:{toy}:train"):
        features, objects = load_tool("fit_objectness").describe_photo(sample)
        height, width = sample.truth.size
        for number, (x1, y1, x2, y2) in enumerate(sample.truth.boxes.tolist()):
            areas = features[objects == number, 0].exp() * height * width
            size = (x2 - x1) * (y2 - y1)
            assert len(areas) > 0
            # what overlaps by half has between half and twice the area
            assert bool(((areas > 0.499 * size) & (areas < 2.001 * size)).all())
        assert objects.min() == -1
        assert objects.max() < len(sample.truth)


def test_all_objects_weigh_the_same() -> None:
    objects = torch.tensor([-1, 0, 2, 2, -1, 2, 2, 0, 5])
    weights = load_tool("fit_objectness").weigh(objects)
    totals = [float(weights[objects == number].sum()) for number in (0, 2, 5)]
    assert totals == pytest.approx([7 / 3] * 3)
    assert weights[objects == -1].tolist() == [1, 1]
    assert load_tool("fit_objectness").weigh(torch.tensor([-1, -1])).tolist() == [1, 1]


def test_the_fit_does_not_depend_on_units_of_features() -> None:
    """Features in units of powers of two give the same weights in these units, to the last bit."""
    noise = torch.randn(9000, FEATURES, generator=torch.Generator().manual_seed(4)) + 3
    labels = (noise[:, 7] > 3.5).long()
    objects = torch.where(labels == 1, torch.arange(9000) % 40, -1)
    units = 2.0 ** (torch.arange(FEATURES) % 9 - 4)
    run = load_tool("fit_objectness").fit
    hidden, output = run(noise, objects, torch.Generator().manual_seed(5))
    scaled, same = run(noise * units, objects, torch.Generator().manual_seed(5))
    assert np.array_equal(scaled[:-1] * units.numpy()[:, None], hidden[:-1])
    assert np.array_equal(scaled[-1], hidden[-1])
    assert np.array_equal(same, output)
    scores = torch.from_numpy(score(noise.numpy(), hidden, output))
    assert (scores[labels == 1][:, None] > scores[labels == 0]).float().mean() > 0.9, "area under the ROC curve"


def test_the_shipped_weights_have_the_format_that_is_written() -> None:
    path = REPOSITORY / "proposals" / "objectness.py"
    shipped = path.read_text(encoding="utf-8").partition("# fmt: off")[2]
    written = load_tool("fit_objectness").to_source(objectness.HIDDEN, objectness.OUTPUT, "Of a test.")
    assert written.partition("# fmt: off")[2] == shipped
    assert objectness.HIDDEN.shape == (FEATURES + 1, len(objectness.OUTPUT))
    assert objectness.HIDDEN.dtype == objectness.OUTPUT.dtype == np.float32
    assert np.isfinite(objectness.HIDDEN).all()


def test_a_missing_data_set_is_named(toy: Path, tmp_path: Path) -> None:
    done = fit(f"voc:{toy}:nothing", "--out", tmp_path / "a.py")
    assert done.returncode == 2
    assert "nothing.txt: expected the list of a split's images" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
