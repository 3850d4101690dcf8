"""Check `sppnet evaluate` and `sppnet detect` with several models, and that one alone is measured as ever."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from detector.checkpoints import load_detector, save_detector
from detector.cli import main
from detector.datasets import open_dataset
from detector.ensemble import Ensemble, join_proposals
from detector.evaluation import evaluate as measure
from detector.evaluation.misses import MISSES
from detector.images import read_image
from detector.sppnet import SPPNet
from detector.structures import Detections
from proposals.registry import make_proposer
from tests.toy import CLASSES, SMALL, draw

NAMES = {"a": CLASSES, "b": ("Triangle", "circle", "square"), "w": CLASSES, "z": ("circle", "zebra")}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of small models with random learned layers; w.safetensors is used to sliding windows."""
    folder = tmp_path_factory.mktemp("models")
    for seed, (name, classes) in enumerate(NAMES.items(), start=5):
        config = replace(SMALL, min_score=0.2, max_detections=20, proposals="windows" if name == "w" else "fast")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            save_detector(SPPNet(config, classes), folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """Return a VOC tree with 2 test photos."""
    return draw(tmp_path / "toy", 8, seed=1)


def run(command: str, *arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [command, *map(str, arguments), "--threads", "1"])


def chosen(models: Path, names: str) -> list[str]:
    return [part for name in names for part in ("--model", str(models / f"{name}.safetensors"))]


def both(models: Path, names: str) -> Ensemble:
    return Ensemble([load_detector(models / f"{name}.safetensors") for name in names])


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def check_written(out: Path, toy: Path, predict: Callable[[Tensor], Detections]) -> None:
    """Compare what was written with what the API finds and measures."""
    dataset = open_dataset(f"voc:{toy}:test", CLASSES)
    found = [predict(read_image(sample.path)) for sample in dataset]
    assert sum(map(len, found)) > 0
    rows = [row for s, d in zip(dataset, found, strict=True) for row in d.to_coco(s.image_id)]
    assert read(out / "detections.json") == rows
    expected = measure(found, dataset.truths, CLASSES, ["voc07"])["voc07"]
    metrics = read(out / "metrics.json")["voc07"]
    assert (metrics["map"], metrics["per_class"]) == (expected.map, expected.per_class)


def test_one_model_is_measured_by_itself(models: Path, toy: Path, tmp_path: Path) -> None:
    out, net, proposer = tmp_path / "out", load_detector(models / "a.safetensors"), make_proposer("fast")
    result = run("evaluate", *chosen(models, "a"), "--data", f"voc:{toy}:test", "--out", out)
    assert result.exit_code == 0, result.stderr
    check_written(out, toy, lambda image: net.predict(image, proposer(image)))
    assert "Models" not in (out / "report.html").read_text()


def test_two_models_are_given_the_same_proposals(models: Path, toy: Path, tmp_path: Path) -> None:
    out, net, proposer = tmp_path / "out", both(models, "ab"), make_proposer("fast")
    options: list[str | Path] = ["--data", f"voc:{toy}:test", "--errors", "--cache", tmp_path / "cache", "--out", out]
    result = run("evaluate", *chosen(models, "ab"), *options)
    assert result.exit_code == 0, result.stderr
    check_written(out, toy, lambda image: net.predict(image, proposer(image)))
    page = (out / "report.html").read_text()
    assert f"{models / 'a.safetensors'}, {models / 'b.safetensors'}" in page
    assert len(list((tmp_path / "cache" / "proposals").iterdir())) == 1
    errors = read(out / "errors.json")
    assert set(MISSES) <= set(errors["counts"])
    assert "low score" in result.stdout


@pytest.mark.parametrize("cached", [False, True])
def test_each_model_has_its_own_proposals(models: Path, toy: Path, tmp_path: Path, cached: bool) -> None:
    """The first and the third share a proposer; the causes of misses are told among all proposals."""
    out, net = tmp_path / "out", both(models, "awb")
    fast, windows = make_proposer("fast"), make_proposer("windows")
    options: list[str | Path] = ["--cache", tmp_path / "cache"] if cached else []
    options += ["--data", f"voc:{toy}:test", "--errors", "--out", out]
    parts = (fast, windows, fast)
    for _ in range(1 + cached):  # the second time from the cache
        result = run("evaluate", *chosen(models, "awb"), *options)
        assert result.exit_code == 0, result.stderr
        check_written(out, toy, lambda image: net.predict(image, join_proposals([part(image) for part in parts])))
        assert set(MISSES) <= set(read(out / "errors.json")["counts"])
    assert len(list((tmp_path / "cache").glob("proposals/*/*.npz"))) == (4 if cached else 0)


def test_proposals_that_are_named_are_those_of_all(models: Path, toy: Path, tmp_path: Path) -> None:
    out, net, windows = tmp_path / "out", both(models, "aw"), make_proposer("windows")
    options: list[str | Path] = ["--proposals", "windows", "--data", f"voc:{toy}:test", "--out", out]
    result = run("evaluate", *chosen(models, "aw"), *options)
    assert result.exit_code == 0, result.stderr
    check_written(out, toy, lambda image: net.predict(image, windows(image)))


def test_a_stopped_evaluation_is_continued_by_the_same_models_only(models: Path, toy: Path, tmp_path: Path) -> None:
    """Stop at a damaged second photo; the journal is taken up by the same models in the same order alone."""
    photo, journal = toy / "JPEGImages" / "000005.jpg", tmp_path / "out" / "unfinished.jsonl"
    whole = photo.read_bytes()
    photo.write_bytes(whole[:-200])

    def stopped(names: str, *more: str) -> list[str]:
        options: list[str | Path] = ["--data", f"voc:{toy}:test", "--out", tmp_path / "out", *more]
        result = run("evaluate", *chosen(models, names), *options)
        assert result.exit_code == 1
        assert "000005.jpg: expected a whole image" in result.stderr
        return journal.read_text().splitlines()

    contents = [stopped(*arguments) for arguments in (["a"], ["ab"], ["ba"], ["aw"], ["aw", "--proposals", "fast"])]
    assert len({lines[0] for lines in contents}) == 5
    assert all(len(lines) == 2 for lines in contents)
    first = stopped("ab")
    assert first == contents[1]
    other = json.loads(first[1])
    other[1][1][0] = 0.875  # a score that no model gave shows that the line is taken as it is
    journal.write_text(f"{first[0]}\n{json.dumps(other)}\n")
    photo.write_bytes(whole)
    result = run("evaluate", *chosen(models, "ab"), "--data", f"voc:{toy}:test", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert 0.875 in [row["score"] for row in read(tmp_path / "out" / "detections.json")]


def test_what_does_not_go_together_is_told_in_one_line(models: Path, toy: Path, tmp_path: Path) -> None:
    data: list[str | Path] = ["--data", f"voc:{toy}:test", "--out", tmp_path / "out"]
    a, z = (models / f"{name}.safetensors" for name in "az")
    (tmp_path / "theirs.json").write_text("[]")
    for options, code, message in (
        (
            chosen(models, "az"),
            1,
            f"expected {z} to know the classes of {a}, got a model without square, triangle and with zebra",
        ),
        ([*chosen(models, "ab"), "--task", "classify"], 2, "--model: expected one model with --task classify, got"),
        (
            [*chosen(models, "ab"), "--detections", str(tmp_path / "theirs.json")],
            2,
            "--model: expected one model with --detections, got",
        ),
    ):
        result = run("evaluate", *options, *data)
        assert result.exit_code == code, result.stderr
        (line,) = result.stderr.splitlines()
        assert line.startswith("sppnet: error: ")
        assert message in line
    assert not (tmp_path / "out").exists()


def test_detect_combines_models_as_well(models: Path, toy: Path, tmp_path: Path) -> None:
    photo, out, net = toy / "JPEGImages" / "000005.jpg", tmp_path / "out", both(models, "aw")
    options: list[str | Path] = [photo, "--out", out, "--score", "0.25", "--max-proposals", "40", "--json-only"]
    result = run("detect", *chosen(models, "aw"), *options)
    assert result.exit_code == 0, result.stderr
    for part in net.detectors:
        part.config = replace(part.config, max_proposals=40)
    image = read_image(photo)
    found = net.predict(image, join_proposals([make_proposer(name)(image) for name in ("fast", "windows")]))
    (entry,) = read(out / "detections.json")
    assert entry["detections"] == found.above(0.25).to_dicts()
    assert entry["detections"]
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"000005.jpg": [[10, 5, 60, 40]]}))
    result = run("detect", *chosen(models, "aw"), photo, "--out", out, "--boxes", boxes, "--json-only")
    assert result.exit_code == 0, result.stderr
    scores = net.predict_boxes(image, torch.tensor([[10.0, 5, 60, 40]]))
    assert read(out / "detections.json")[0]["detections"] == scores.to_dicts()
