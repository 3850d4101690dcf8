"""Check `sppnet evaluate` on detections made elsewhere, what it exports, and how it explains failures."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.checkpoints import save_detector
from detector.cli import main
from detector.evaluation.errors import ALL_FALSE, ALL_MISSED, FALSE
from detector.evaluation.misses import MISSES
from tests.toy import CLASSES, SMALL, draw, small_model


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a VOC tree with 4 test photos."""
    return draw(tmp_path_factory.mktemp("data") / "toy", 16)


@pytest.fixture(scope="module")
def evaluated(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Return the folder of an evaluation of a small model with all that may be asked for, and what it printed."""
    folder = tmp_path_factory.mktemp("evaluated")
    config = replace(SMALL, min_score=0.3, max_detections=3)  # so that objects are missed
    save_detector(small_model(config), folder / "m.safetensors")
    options = [
        "--metric",
        "voc10,voc07",
        "--iou",
        "0.5,0.3",
        "--errors",
        "--export",
        "comp4",
        "--cache",
        folder / "cache",
    ]
    result = evaluate(
        "--model", folder / "m.safetensors", "--data", f"voc:{toy}:test", *options, "--out", folder / "out"
    )
    assert result.exit_code == 0, result.output
    return folder / "out", result


def evaluate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments), "--threads", "1"])


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_all_that_was_asked_for_is_there(evaluated: tuple[Path, Result]) -> None:
    out, result = evaluated
    assert list(read(out / "metrics.json")) == ["voc10", "voc10@0.3", "voc07", "voc07@0.3"]
    assert sorted(path.name for path in (out / "comp4").iterdir()) == sorted(
        f"comp4_det_test_{name}.txt" for name in CLASSES
    )
    page = (out / "report.html").read_text()
    for section in ("classes", "table", "sizes", "curves", "confusion", "errors", "misses", "alarms"):
        assert f'id="{section}"' in page, section
    assert "explaining" in result.stderr
    for name in ("ap", "curves", "confusion", "errors"):
        assert (out / f"{name}.png").stat().st_size > 5000


def test_failures_are_explained_by_regions(evaluated: tuple[Path, Result]) -> None:
    out, result = evaluated
    report, metrics = read(out / "errors.json"), read(out / "metrics.json")
    assert report["baseline"] == metrics["voc10"]["map"]
    assert set(report["counts"]) == {*FALSE, *MISSES}
    assert set(report["costs"]) == {*FALSE, *MISSES, ALL_FALSE, ALL_MISSED}
    assert sum(report["counts"].values()) == len(report["mistakes"])
    misses = [mistake for mistake in report["mistakes"] if mistake["score"] is None]
    assert {mistake["cause"] for mistake in misses} <= set(MISSES)
    assert misses
    assert all(0 <= mistake["overlap"] <= 1 for mistake in misses)
    for cause, count in report["counts"].items():
        assert f"{cause:<22}  {count:>6}" in result.stdout


@pytest.mark.parametrize("kind", ["detections.json", "comp4"])
def test_exported_detections_measure_the_same(
    kind: str, evaluated: tuple[Path, Result], toy: Path, tmp_path: Path
) -> None:
    """Name the model for its classes: the photos are not looked at, and may be gone."""
    out, _ = evaluated
    bare = shutil.copytree(toy, tmp_path / "toy")
    shutil.rmtree(bare / "JPEGImages")
    options = ["--model", out.parent / "m.safetensors", "--metric", "voc10,voc07", "--iou", "0.5,0.3", "--errors"]
    result = evaluate("--data", f"voc:{bare}:test", "--detections", out / kind, *options, "--out", tmp_path / "again")
    assert result.exit_code == 0, result.output
    again, before = read(tmp_path / "again" / "metrics.json"), read(out / "metrics.json")
    assert again == before
    errors, explained = read(tmp_path / "again" / "errors.json"), read(out / "errors.json")
    assert {cause: errors["counts"][cause] for cause in FALSE} == {c: explained["counts"][c] for c in FALSE}
    assert errors["counts"]["missed"] == sum(explained["counts"][cause] for cause in MISSES)


def test_coco_numbers_are_those_of_the_official_tool(tmp_path: Path) -> None:
    """Give boxes that float32 cannot hold, at an IoU of exactly 0.5, of a crowd, and of a category without objects."""
    images = [{"id": 5, "file_name": "gone.jpg", "width": 200, "height": 100}, {"id": 2, "file_name": "b.jpg"}]
    boxes = [[0.1, 0.2, 20.3, 40.7], [50, 50, 30, 40], [10, 10, 99.99, 55.5], [0, 0, 7, 9]]
    keys = [(5, 18, 0), (5, 1, 0), (2, 18, 1), (2, 1, 0)]
    objects = [
        {"id": n, "image_id": i, "category_id": c, "iscrowd": crowd, "bbox": box, "area": 0.7 * box[2] * box[3]}
        for n, ((i, c, crowd), box) in enumerate(zip(keys, boxes, strict=True), start=1)
    ]
    categories = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}, {"id": 3, "name": "car"}]
    (tmp_path / "truth.json").write_text(
        json.dumps({"images": images, "annotations": objects, "categories": categories})
    )
    rows = [
        {"image_id": 5, "category_id": 18, "bbox": [0.1, 0.2, 20.3, 20.35], "score": 0.7},
        {"image_id": 5, "category_id": 1, "bbox": [50, 50, 30.1, 38.3], "score": 0.7},
        {"image_id": 2, "category_id": 18, "bbox": [10, 10, 60, 33.3], "score": 0.9},
        {"image_id": 2, "category_id": 1, "bbox": [0, 0, 7, 8], "score": 0.71},
    ]
    (tmp_path / "found.json").write_text(json.dumps(rows))
    data = f"coco:{tmp_path / 'truth.json'}:{tmp_path / 'none'}"
    result = evaluate(
        "--data", data, "--detections", tmp_path / "found.json", "--metric", "coco", "--out", tmp_path / "out"
    )
    assert result.exit_code == 0, result.output
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "truth.json"))
        judge = COCOeval(truth, truth.loadRes(str(tmp_path / "found.json")), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    ours = read(tmp_path / "out" / "metrics.json")["coco"]
    expected = [None if value == -1 else value for value in judge.stats.tolist()]
    assert list(ours["stats"].values()) == expected
    assert 0 < ours["map"] < 1
    assert "coco: measured by pycocotools " in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--iou", "0.5,1.5"], "--iou: expected numbers above 0 and at most 1 with commas, got '1.5'"),
        (["--iou", "half"], "got 'half'"),
        (["--export", "comp3"], "--export: expected --out, the folder to write into, got none"),
        (["--detections", "setup.py-that-is-not-there"], "does not exist"),
    ],
)
def test_mistakes_are_told(options: list[str], message: str, toy: Path) -> None:
    result = evaluate("--data", f"voc:{toy}:test", *options)
    assert result.exit_code == 2
    assert message in result.stderr
