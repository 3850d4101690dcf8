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
        regions = load_tool("fit_objectness").describe_photo(sample)
        scores = torch.from_numpy(score(regions.features.numpy(), weights["HIDDEN"], weights["OUTPUT"]))
        positives, negatives = scores[regions.overlaps >= 0.5], scores[regions.overlaps < 0.4]
        assert min(len(positives), len(negatives)) > 10
        assert (positives[:, None] > negatives).float().mean() > 0.9, "area under the ROC curve"


def test_regions_belong_to_the_object_that_they_overlap_most(toy: Path) -> None:
    for sample in open_dataset(f"voc:{toy}:train"):
        regions = load_tool("fit_objectness").describe_photo(sample)
        features, objects = regions.features, regions.objects
        height, width = sample.truth.size
        for number, (x1, y1, x2, y2) in enumerate(sample.truth.boxes.tolist()):
            areas = features[objects == number, 0].exp() * height * width
            size = (x2 - x1) * (y2 - y1)
            assert len(areas) > 0
            # what overlaps by more than 0.4 has between 0.4 times and 2.5 times the area
            assert bool(((areas > 0.399 * size) & (areas < 2.501 * size)).all())
            assert regions.overlaps[objects == number].max() > 0.8
        assert objects.min() == -1
        assert objects.max() < len(sample.truth)
        assert torch.equal(objects >= 0, regions.overlaps > 0.4)


def test_targets_rise_from_no_object_to_a_whole_one() -> None:
    overlaps = torch.tensor([0.0, 0.4, 0.5, 0.7, 0.8, 1.0])
    regions = load_tool("fit_objectness").Regions(torch.zeros(6, FEATURES), overlaps, torch.zeros(6).long())
    torch.testing.assert_close(regions.targets(), torch.tensor([0, 0, 0.25, 0.75, 1, 1]))


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
    tool = load_tool("fit_objectness")
    plain, larger = (tool.Regions(inputs, labels.float(), objects) for inputs in (noise, noise * units))
    hidden, output = tool.fit(plain, torch.Generator().manual_seed(5))
    scaled, same = tool.fit(larger, torch.Generator().manual_seed(5))
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
