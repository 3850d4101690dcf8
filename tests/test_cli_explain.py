"""Check `sppnet detect --explain` from files to files, with a tiny model whose machines are random."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from detector.checkpoints import load_detector, save_detector
from detector.cli import main
from detector.cli.explain import MOST_PICTURES
from detector.cli.train_machines import build, settings_of
from detector.images import read_image
from tests.toy import CLASSES, SMALL, small_model


def save_machines(path: Path, *settings: str) -> Path:
    """Save a detector of toy shapes with random machines."""
    net = build(small_model(), settings_of(SMALL, None, ["readable_score=0.3", *settings]))
    generator = torch.Generator().manual_seed(8)
    for part in (net.machines, net.ridge):
        part.weight.copy_(0.02 * torch.randn(part.weight.shape, generator=generator))
    save_detector(net, path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_machines(tmp_path_factory.mktemp("model") / "linear.safetensors", "svm_layer=pool5")


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the current folder one with photos/one.jpg (140 x 90) and photos/two.png (64 x 100)."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    rng = np.random.default_rng(1)
    for name, (width, height) in (("one.jpg", (140, 90)), ("two.png", (64, 100))):
        pixels = np.full((height, width, 3), 200, dtype=np.uint8)
        for _ in range(5):
            x, y = rng.integers(0, width - 20), rng.integers(0, height - 20)
            pixels[y : y + 30, x : x + 40] = rng.integers(0, 256, 3)
        Image.fromarray(pixels).save(Path("photos") / name)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["detect", *map(str, arguments)])


def entries(folder: str = "out") -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads((Path(folder) / "detections.json").read_text())
    return content


def check_row(row: dict[str, Any]) -> None:
    """Check that a row's explanation sums to its score, and the keys that the page describes."""
    one = row["explanation"]
    assert row["label"] in CLASSES
    total = sum(part["contribution"] for part in one["bins"])
    assert one["intercept"] + total == pytest.approx(one["margin"], abs=1e-4)
    assert sum(one["levels"].values()) == pytest.approx(total, abs=1e-4)
    assert list(one["levels"]) == ["6", "3", "2", "1"]
    assert 1 / (1 + math.exp(-(one["intercept"] + total))) == pytest.approx(row["score"], abs=1e-4)


def test_every_detection_is_explained_and_the_best_are_drawn(model: Path) -> None:
    plain = run("photos", "--out", "plain", "--model", model)
    result = run("photos", "--out", "out", "--model", model, "--explain")
    assert (plain.exit_code, result.exit_code, result.stderr) == (0, 0, "")
    pictures = {"detections.json", "one.jpg", "two.png"}
    for one, other in zip(entries(), entries("plain"), strict=True):
        rows = one["detections"]
        assert len(rows) > MOST_PICTURES
        bare = [{key: value for key, value in row.items() if key != "explanation"} for row in rows]
        assert bare == other["detections"]
        path = Path(one["image"])
        for number, row in enumerate(rows, 1):
            check_row(row)
            if number > MOST_PICTURES:
                assert "picture" not in row["explanation"]
                continue
            assert row["explanation"]["picture"] == f"{path.stem}-explained-{number}{path.suffix}"
            picture = read_image(Path("out") / row["explanation"]["picture"])
            assert picture.shape[1] > one["height"]
            assert picture.shape[2] >= one["width"]
            pictures.add(row["explanation"]["picture"])
    assert {path.name for path in Path("out").iterdir()} == pictures
    assert Path("out/one.jpg").read_bytes() == Path("plain/one.jpg").read_bytes()


def test_json_only_draws_nothing(model: Path) -> None:
    assert run("photos", "--out", "out", "--model", model, "--explain", "--json-only", "--score", "0.5").exit_code == 0
    rows = [row for entry in entries() for row in entry["detections"]]
    assert rows
    for row in rows:
        assert row["score"] >= 0.5
        check_row(row)
        assert "picture" not in row["explanation"]
    assert [path.name for path in Path("out").iterdir()] == ["detections.json"]


def test_given_boxes_are_explained_for_their_best_class(model: Path) -> None:
    boxes = [[30, 20, 90, 80], [0, 0, 10.5, 10], [30, 20, 90, 80]]
    Path("boxes.json").write_text(json.dumps({"one": boxes, "two": []}))
    assert run("photos", "--out", "out", "--model", model, "--explain", "--boxes", "boxes.json").exit_code == 0
    one, two = entries()
    assert two["detections"] == []
    net = load_detector(str(model))
    expected = net.predict_boxes(read_image("photos/one.jpg"), torch.tensor(boxes)).to_dicts()
    for row, other in zip(one["detections"], expected, strict=True):
        check_row(row)
        assert row["label"] == other["label"]
        assert row["explanation"]["region"] == row["box"]
    assert len(list(Path("out").glob("one-explained-*.jpg"))) == 3


def test_pictures_overwrite_neither_photos_nor_each_other(model: Path) -> None:
    Path("photos/one-explained-1.jpg").write_bytes(Path("photos/one.jpg").read_bytes())
    before = {path: path.read_bytes() for path in Path("photos").iterdir()}
    result = run("photos", "--out", "photos", "--model", model, "--explain", "--score", "0.5")
    assert result.exit_code == 0
    assert all(path.read_bytes() == content for path, content in before.items())
    names = [row["explanation"].get("picture") for entry in entries("photos") for row in entry["detections"]]
    drawn = [name for name in names if name]
    assert "one-explained-1-3.jpg" in drawn  # the first name is a photo, the second the picture of that photo
    assert len(drawn) == len(set(drawn))


def test_models_without_such_a_sum_are_refused(model: Path) -> None:
    save_detector(small_model(), "joint.safetensors")
    save_machines(Path("fc7.safetensors"), "svm_layer=fc7")
    for name, got in (("joint", "a model of kind sppnet"), ("fc7", "one on fc7")):
        result = run("photos", "--out", "out", "--model", f"{name}.safetensors", "--explain")
        assert (result.exit_code, result.stdout) == (2, "")
        (line,) = result.stderr.splitlines()
        assert f"--explain: expected a model of kind svm on pool5, got {got}; train one with `sppnet train" in line
    both = run("photos", "--out", "other", "--model", model, "--model", model, "--explain")
    assert both.exit_code == 2
    assert "--model: expected one model with --explain, got" in both.stderr
    assert not Path("other").exists()


def test_help_teaches_it() -> None:
    text = " ".join(run("--help").stdout.split())
    assert "--explain" in text
    assert "svm_layer=pool5" in text
