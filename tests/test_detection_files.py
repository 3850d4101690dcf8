"""Check that detections made elsewhere are read as they are, and written so that they are read the same again."""

from __future__ import annotations

import contextlib
import io
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from detector.datasets import Dataset, open_dataset
from detector.detection_files import read_coco_rows, read_detections, write_coco_results, write_voc_results
from detector.structures import Detections
from tests.toy import CLASSES, draw


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return six annotated photos of a VOC tree."""
    return open_dataset(f"voc:{draw(tmp_path_factory.mktemp('data') / 'toy', 24)}:test", CLASSES)


def random_detections(dataset: Dataset, seed: int = 0) -> list[Detections]:
    """Return float32 detections, best first, with scores that tie within and between images."""
    generator = np.random.default_rng(seed)
    found = []
    for sample in dataset:
        count = int(generator.integers(0, 6))
        corners = generator.random((count, 2)) * 50 - 3
        boxes = np.concatenate([corners, corners + generator.random((count, 2)) * 60], axis=1).astype(np.float32)
        scores = np.sort(np.round(generator.random(count), 1).astype(np.float32))[::-1].copy()
        labels = generator.integers(0, len(dataset.class_names), count)
        numbers = torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(labels)
        found.append(Detections(*numbers, sample.truth.size, dataset.class_names))
    assert sum(map(len, found)) > 8
    return found


def assert_same(found: list[Detections], expected: list[Detections]) -> None:
    """Compare numbers exactly; those of one class stay in their order."""
    for one, other in zip(found, expected, strict=True):
        for label in range(len(other.class_names)):
            mine, theirs = one.labels == label, other.labels == label
            assert torch.equal(one.boxes[mine], other.boxes[theirs].double())
            assert torch.equal(one.scores[mine], other.scores[theirs].double())


def test_voc_files_come_back_as_they_were(dataset: Dataset, tmp_path: Path) -> None:
    expected = random_detections(dataset)
    write_voc_results(expected, dataset, tmp_path / "out", "comp4", "val")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == sorted(f"comp4_det_val_{name}.txt" for name in dataset.class_names)
    assert_same(read_detections(tmp_path / "out", dataset), expected)


def test_coco_results_come_back_as_they_were(dataset: Dataset, tmp_path: Path) -> None:
    expected = random_detections(dataset, 1)
    write_coco_results(expected, dataset, tmp_path / "results.json")
    assert_same(read_detections(tmp_path / "results.json", dataset), expected)
    rows = read_coco_rows(tmp_path / "results.json")
    assert rows == json.loads((tmp_path / "results.json").read_text())
    assert {row["image_id"] for row in rows} <= {sample.image_id for sample in dataset}


def test_files_are_read_line_by_line_as_the_devkit_means_them(dataset: Dataset, tmp_path: Path) -> None:
    """Pixels count from 1 and the last is in the box; the lines keep their order, classes are spelled as one likes."""
    first, second = (sample.path.stem for sample in list(dataset)[:2])
    other = dataset.class_names[1]
    (tmp_path / f"comp3_det_test_{dataset.class_names[0].upper()}.txt").write_text(
        f"{second} 0.5 1 2 30 40\n{first} 0.25 3.5 4.25 5 6\n{first} 0.5 1 1 1 1\n"
    )
    (tmp_path / f"comp3_det_test_{other}.txt").write_text("")
    found = read_detections(tmp_path, dataset)
    assert found[0].boxes.tolist() == [[0, 0, 1, 1], [2.5, 3.25, 5, 6]]
    assert found[0].scores.tolist() == [0.5, 0.25]
    assert found[0].order is not None
    assert found[0].order.tolist() == [2, 1]
    assert (found[1].boxes.tolist(), found[1].order.tolist()) == ([[0, 1, 30, 40]], [0])
    assert found[0].boxes.dtype == found[0].scores.dtype == torch.float64


def test_text_of_six_decimals_comes_back_as_it_was(dataset: Dataset, tmp_path: Path) -> None:
    name = dataset[0].path.stem
    lines = [f"{name} 0.123456 0.1 1.000001 17.3 200.7", f"{name} 0.1 12.345678 0.3 13.4 9.9"]
    files = {label: tmp_path / "in" / f"comp3_det_test_{label}.txt" for label in dataset.class_names}
    (tmp_path / "in").mkdir()
    for path in files.values():
        path.write_text("\n".join(lines) + "\n")
    write_voc_results(read_detections(tmp_path / "in", dataset), dataset, tmp_path / "out")
    for path in files.values():
        assert (tmp_path / "out" / path.name).read_text() == path.read_text()


def test_ids_are_those_of_the_coco_file(tmp_path: Path) -> None:
    """Number images 7, 900 and categories 0, 44; pycocotools loads the same rows with the file itself."""
    toy = draw(tmp_path / "toy", 8)
    photos = sorted((toy / "JPEGImages").iterdir())[:2]
    box = {"bbox": [1, 2, 30, 20], "iscrowd": 0, "area": 600}
    tables: dict[str, Any] = {
        "images": [{"id": i, "file_name": p.name} for i, p in zip((900, 7), photos, strict=True)],
        "categories": [{"id": 44, "name": "red"}, {"id": 0, "name": "blue"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 44, **box},
            {"id": 2, "image_id": 900, "category_id": 0, **box},
        ],
    }  # fmt: skip
    (tmp_path / "truth.json").write_text(json.dumps(tables))
    dataset = open_dataset(f"coco:{tmp_path / 'truth.json'}:{toy / 'JPEGImages'}")
    rows = [
        {"image_id": 900, "category_id": 44, "bbox": [0.1, 0.2, 10.3, 20.7], "score": 0.3},
        {"image_id": 7, "category_id": 0, "bbox": [5, 6, 7, 8], "score": 0.9},
    ]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    by_id = {s.source_id: d for s, d in zip(dataset, read_detections(tmp_path / "results.json", dataset), strict=True)}
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = COCO(str(tmp_path / "truth.json")).loadRes(str(tmp_path / "results.json"))
    for row in loaded.anns.values():
        (found,) = (by_id[row["image_id"]],)
        x, y, w, h = row["bbox"]
        assert found.boxes.tolist() == [[x, y, x + w, y + h]]
        assert found.scores.tolist() == [row["score"]]
        assert dataset.category_ids is not None
        assert dataset.category_ids[int(found.labels[0])] == row["category_id"]


def test_what_detect_writes_is_read(dataset: Dataset, tmp_path: Path) -> None:
    label = dataset.class_names[1]
    rows = [
        {"label": label, "score": 0.7, "box": [1.25, 2, 3, 4]},
        {"label": "unicorn", "score": 0.9, "box": [0, 0, 1, 1]},
    ]
    entries = [{"image": dataset[2].path.name, "detections": rows}, {"image": "elsewhere.jpg", "detections": rows}]
    (tmp_path / "detections.json").write_text(json.dumps(entries))
    found = read_detections(tmp_path / "detections.json", dataset)
    assert [len(d) for d in found] == [0, 0, 1, *([0] * (len(dataset) - 3))]
    assert found[2].to_dicts() == [{"label": label, "score": 0.7, "box": [1.25, 2, 3, 4]}]


ROW = {"image_id": "a", "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}
OWN = {"image": "a.jpg", "detections": [{"label": "cat", "score": 1, "box": [0, 0, 1, 1]}]}
BROKEN = {
    '[{"image_id": 1': "damaged or truncated",
    "{}": "expected a JSON list of COCO results or of what sppnet detect writes, or a folder",
    "[3]": "row 1: expected an object, got 3",
    json.dumps([ROW, {**ROW, "bbox": [0, 0, 1]}]): "row 2: expected four finite numbers as bbox",
    json.dumps([{**ROW, "bbox": [0, 0, -1, 1]}]): "with no negative width or height",
    json.dumps([{**ROW, "bbox": [0, 0, float("nan"), 1]}]): "row 1: expected four finite numbers as bbox",
    json.dumps([{**ROW, "score": "1"}]): "row 1: expected a finite number as score, got '1'",
    json.dumps([{**ROW, "image_id": [1]}]): "row 1: expected an integer or a text as image_id, got [1]",
    json.dumps([ROW]): "expected detections in images of the data set, got none, only 'a' and such",
    json.dumps([{**OWN, "image": 3}]): "image 1: expected an object with the path of an image",
    json.dumps([{**OWN, "detections": [{"label": "cat", "score": 1, "box": [3, 0, 1, 1]}]}]): "expected box [x1, y1",
    json.dumps([{"image": "a", "detections": [{"score": 1}]}]): "an object with label, score and box",
    "[" * 100_000: "damaged or truncated",
}  # fmt: skip


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: BROKEN[text][:40])
def test_broken_json_is_told_in_a_sentence(text: str, dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_detections(path, dataset)
    assert str(caught.value).startswith(str(path))
    assert BROKEN[text] in str(caught.value)
    assert "\n" not in str(caught.value)


LINES = {
    "NAME 0.5 1 2 3": "expected",
    "NAME 0.5 1 2 3 four": "expected",
    "NAME nan 1 2 3 4": "expected",
    "NAME 0.5 1 2 inf 4": "expected",
    "NAME 0.5 9 2 3 4": "expected",
    "NAME 0.5 1 2 3 4 5": "expected",
}


@pytest.mark.parametrize("line", LINES)
def test_broken_lines_are_named(line: str, dataset: Dataset, tmp_path: Path) -> None:
    name = dataset[0].path.stem
    path = tmp_path / f"comp3_det_test_{dataset.class_names[0]}.txt"
    path.write_text(f"{name} 0.5 1 2 3 4\n{line.replace('NAME', name)}\n")
    with pytest.raises(ValueError, match="line 2") as caught:
        read_detections(tmp_path, dataset)
    assert str(path) in str(caught.value)
    assert "expected" in str(caught.value)


def test_what_is_no_folder_of_results_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected"):
        read_detections(tmp_path, dataset)
    with pytest.raises(FileNotFoundError, match=r"none\.json: expected .*, got no such file"):
        read_detections(tmp_path / "none.json", dataset)
    path = tmp_path / "comp3_det_test_red.txt"
    path.write_text("")
    with pytest.raises(ValueError, match="expected the folder with the VOC results of all classes"):
        read_detections(path, dataset)
    (tmp_path / "comp4_det_test_red.txt").write_text("")
    with pytest.raises(ValueError, match="comp3"):
        read_detections(tmp_path, dataset)


@pytest.mark.slow
def test_hundreds_of_thousands_of_lines_are_read_in_seconds(dataset: Dataset, tmp_path: Path) -> None:
    """Allow a minute for what takes two seconds on an idle core: the lines must not be read one by one in Python."""
    names = [sample.path.stem for sample in dataset]
    block = "".join(f"{name} 0.{number:06d} 1.5 2.25 30 40.125\n" for number in range(500) for name in names)
    lines = block * (300_000 // (500 * len(names)))
    for label in dataset.class_names:
        (tmp_path / f"comp3_det_test_{label}.txt").write_text(lines)
    started = time.process_time()
    found = read_detections(tmp_path, dataset)
    assert sum(map(len, found)) == lines.count("\n") * len(dataset.class_names)
    assert time.process_time() - started < 60


def test_detections_that_do_not_fit_are_not_written(dataset: Dataset, tmp_path: Path) -> None:
    found = random_detections(dataset)
    with pytest.raises(ValueError, match="one per sample"):
        write_voc_results(found[:-1], dataset, tmp_path / "out")
    with pytest.raises(ValueError, match="expected detections of the classes"):
        write_coco_results([replace(d, class_names=("a", "b", "c")) for d in found], dataset, tmp_path / "results.json")
    assert list(tmp_path.iterdir()) == []


def test_text_of_six_decimals_comes_back_from_coco_results(dataset: Dataset, tmp_path: Path) -> None:
    """Write what was read: every bbox has its number again, though x + width - x is seldom width in float64."""
    generator = np.random.default_rng(4)
    rows = [
        {"image_id": dataset[0].image_id, "category_id": 1, "bbox": np.round(box, 6).tolist(), "score": 0.5}
        for box in generator.random((500, 4)) * 300
    ]
    (tmp_path / "in.json").write_text(json.dumps(rows))
    write_coco_results(read_detections(tmp_path / "in.json", dataset), dataset, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == rows
    assert sum((x + w) - x != w for x, _, w, _ in (row["bbox"] for row in rows)) > 100
