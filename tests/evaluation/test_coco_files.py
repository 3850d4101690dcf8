"""Compare with a plain call of pycocotools on the same two files: every number is the same, to the last digit."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.evaluation import coco_file_ap

PUBLISHED = (
    "0.5045806987 0.6969727247 0.5729816670 0.5856257209 0.5193996948 0.5013978986 "
    "0.3868127796 0.5936795763 0.5953529829 0.6398109626 0.5664205979 0.5642905983"
)


def official(truth: Path, found: Path) -> list[float]:
    """Return the twelve numbers of the official script."""
    with contextlib.redirect_stdout(io.StringIO()):
        objects = COCO(str(truth))
        judge = COCOeval(objects, objects.loadRes(str(found)), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return [float(value) for value in judge.stats]


def random_files(seed: int, folder: Path) -> tuple[Path, Path]:
    """Write two files: odd ids, crowds, ties, fractions, and boxes of an IoU of exactly 1/2 and 3/4 with an object."""
    generator = np.random.default_rng(seed)
    images = generator.permutation(1000)[:5].tolist()
    categories = [0, 17, 900][: int(generator.integers(1, 4))]
    objects, rows = [], []
    for image in images[:4]:  # the last has neither objects nor detections
        for _ in range(int(generator.integers(0, 5))):
            x, y, w, h = (generator.integers(1, 40, 4) * generator.choice([1, 0.1, 8])).tolist()
            category = int(generator.choice(categories))
            objects.append(
                {
                    "id": 3 * len(objects) + 2, "image_id": image, "category_id": category, "bbox": [x, y, w, h],
                    "iscrowd": int(generator.random() < 0.2), "area": 0.6 * w * h,
                }
            )  # fmt: skip
            for _ in range(int(generator.integers(0, 3))):
                box = [x, y, w, h * generator.choice([0.5, 0.75, 0.55, 1])]
                rows.append((image, int(generator.choice(categories)), box))
        for _ in range(int(generator.integers(0, 3))):
            rows.append((image, int(generator.choice(categories)), (generator.random(4) * 90).tolist()))
    names = [{"id": category, "name": f"class{category}"} for category in categories]
    found = [
        {"image_id": i, "category_id": c, "bbox": list(map(float, box)), "score": float(generator.integers(1, 9) / 8)}
        for i, c, box in rows
    ]
    tables = {"images": [{"id": i} for i in images], "annotations": objects, "categories": names}
    truth, results = folder / f"truth{seed}.json", folder / f"found{seed}.json"
    truth.write_text(json.dumps(tables))
    results.write_text(json.dumps(found))
    return truth, results


def same(ours: tuple[float, ...], theirs: list[float]) -> bool:
    """Compare exactly; where COCO prints -1 there is NaN here."""
    return all(a == b or (math.isnan(a) and b == -1) for a, b in zip(ours, theirs, strict=True))


def test_random_files_measure_the_same(tmp_path: Path) -> None:
    measured = 0
    for seed in range(60):
        truth, found = random_files(seed, tmp_path)
        rows = json.loads(found.read_text())
        if not rows:
            continue
        result = coco_file_ap(truth, rows)
        theirs = official(truth, found)
        assert same(result.stats, theirs), seed
        assert result.map == result.stats[0] or math.isnan(result.map)
        measured += 0 < theirs[0] < 1
    assert measured > 30


def test_the_published_case(shared_data: Path) -> None:
    folder = shared_data / "evalcases" / "cocoapi_fake100"
    rows = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    result = coco_file_ap(folder / "instances_val2014_100.json", rows)
    assert " ".join(f"{value:.10f}" for value in result.stats) == PUBLISHED
    assert result.sizes == dict(zip(("small", "medium", "large"), result.stats[3:6], strict=True))
    assert result.program.startswith("pycocotools ")


def test_without_rows_nothing_is_found(tmp_path: Path) -> None:
    truth, _ = random_files(3, tmp_path)
    objects = {row["category_id"] for row in json.loads(truth.read_text())["annotations"] if not row["iscrowd"]}
    result = coco_file_ap(truth, [])
    assert result.map == 0
    for name, ap in result.per_class.items():
        assert ap == 0 if int(name.removeprefix("class")) in objects else math.isnan(ap)


@pytest.mark.skipif(importlib.util.find_spec("faster_coco_eval") is None, reason="faster-coco-eval is not installed")
def test_the_other_program_agrees(tmp_path: Path) -> None:
    for seed in range(10):
        truth, found = random_files(seed, tmp_path)
        rows = json.loads(found.read_text())
        ours, theirs = (coco_file_ap(truth, rows, program=name) for name in ("pycocotools", "faster-coco-eval"))
        assert theirs.stats == pytest.approx(ours.stats, abs=1e-12, nan_ok=True)
        assert theirs.program.startswith("faster-coco-eval ")


@pytest.mark.skipif(importlib.util.find_spec("faster_coco_eval") is not None, reason="faster-coco-eval is installed")
def test_a_program_that_is_missing_is_named(tmp_path: Path) -> None:
    truth, _ = random_files(0, tmp_path)
    with pytest.raises(ValueError, match="expected the package faster-coco-eval, got none: install it with pip"):
        coco_file_ap(truth, [], program="faster-coco-eval")


GOOD: dict[str, Any] = {
    "images": [{"id": 1}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5]}],
}
ROW = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.5}
ANNOTATION = GOOD["annotations"][0]


def test_what_a_file_lacks_is_filled_in(tmp_path: Path) -> None:
    (tmp_path / "truth.json").write_text(json.dumps(GOOD))
    result = coco_file_ap(tmp_path / "truth.json", [ROW])
    assert result.per_class == {"cat": pytest.approx(1)}
    assert result.sizes["small"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("tables", "rows", "message"),
    [
        ('{"images": [', [], "expected COCO JSON, got a damaged or truncated file"),
        ("[1, 2]", [], "expected COCO JSON with the lists images, annotations, categories"),
        (json.dumps({**GOOD, "annotations": [3]}), [], "expected objects in annotations, got 3 at place 1"),
        (json.dumps({**GOOD, "annotations": [{**ANNOTATION, "bbox": [0, 0, math.nan, 5]}]}), [], "four finite numbers"),
        (json.dumps({**GOOD, "annotations": [{**ANNOTATION, "bbox": "all"}]}), [], "four finite numbers as bbox"),
        (json.dumps({**GOOD, "images": [{"file_name": "a"}]}), [], "expected an integer or a text as id, got none"),
        (json.dumps(GOOD), [{**ROW, "image_id": 2}], "row 1: expected an image_id that is in"),
        (json.dumps(GOOD), [ROW, {**ROW, "score": math.inf}], "results, row 2: expected a finite number as score"),
        (json.dumps(GOOD), [{**ROW, "bbox": [1, 2, 3]}], "results, row 1: expected four finite numbers as bbox"),
    ],
)
def test_malformed_files_are_told_in_a_sentence(tables: str, rows: list[Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "truth.json").write_text(tables)
    with pytest.raises(ValueError) as caught:
        coco_file_ap(tmp_path / "truth.json", rows)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
