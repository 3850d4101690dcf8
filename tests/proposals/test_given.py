"""Check which boxes a JSON file holds for which image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proposals.given import read_boxes


def boxes_file(folder: Path, content: Any) -> Path:
    path = folder / "boxes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_boxes_are_found_by_path_name_and_stem(tmp_path: Path) -> None:
    content = {"a/cat.jpg": [[1, 2, 3, 4]], "cat.jpg": [[5, 6, 7, 8.5]], "dog": [], "x/../y.png": [[0, 0, 1, 1]]}
    given = read_boxes(boxes_file(tmp_path, content))
    assert given.of("a/cat.jpg") == [[1, 2, 3, 4]]
    assert given.of("./a/cat.jpg") == [[1, 2, 3, 4]]
    assert given.of("b/cat.jpg") == [[5, 6, 7, 8.5]]
    assert given.of("b/dog.webp") == []
    assert given.of("x/../y.png") == [[0, 0, 1, 1]]
    with pytest.raises(ValueError, match=r"^b/cow.jpg: expected an entry for it in .*boxes.json, got none$"):
        given.of("b/cow.jpg")


def test_boxes_of_coco_lists(tmp_path: Path) -> None:
    """COCO boxes are [x, y, width, height]; ids are file names without their zeros."""
    content: list[dict[str, Any]] = [
        {"image_id": 139, "bbox": [10, 20, 5, 6.5], "category_id": 3, "score": 0.5},
        {"file_name": "cat.jpg", "bbox": [0, 0, 4, 4]},
        {"image_id": "dog", "bbox": [1, 1, 2, 2]},
        {"image_id": 139, "bbox": [1, 1, 1, 1]},
    ]
    given = read_boxes(boxes_file(tmp_path, content))
    assert given.of("val/000000000139.jpg") == [[10, 20, 15, 26.5], [1, 1, 2, 2]]
    assert given.of("cat.jpg") == [[0, 0, 4, 4]]
    assert given.of("dog.png") == [[1, 1, 3, 3]]


def test_boxes_of_a_whole_coco_file(tmp_path: Path) -> None:
    images = [{"id": 5, "file_name": "cat.jpg"}, {"id": 6, "file_name": "dog.jpg"}]
    content = {"images": images, "annotations": [{"image_id": 5, "bbox": [1, 2, 3, 4]}], "categories": []}
    given = read_boxes(boxes_file(tmp_path, content))
    assert given.of("cat.jpg") == [[1, 2, 4, 6]]
    assert given.of("dog.jpg") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected JSON"),
        ("\ufeff\x00", "expected JSON"),
        ("[" * 100_000, "expected JSON"),
        (3, "expected an object of images or a list of boxes, got int"),
        ({"cat": 5}, "'cat': expected a list of boxes"),
        ({"cat": [1, 2, 3, 4]}, "'cat', box 0: expected .* got 1"),
        ({"cat": [[0, 0, 5, 5], [1, 2, 3]]}, r"'cat', box 1: expected .* got \[1, 2, 3\]"),
        ({"cat": [[1, 2, 1, 4]]}, r"x1 < x2 and y1 < y2, got \[1, 2, 1, 4\]"),
        ({"cat": [[1, 2, 3, "4"]]}, "box 0"),
        ({"cat": [[1, 2, 3, True]]}, "box 0"),
        ('{"cat": [[1, 2, 3, NaN]]}', "box 0.*NaN"),
        ('{"cat": [[1, 2, 3, Infinity]]}', "box 0"),
        ('{"cat": [[1, 2, 3, 1' + "0" * 400 + "]]}", "box 0"),
        ([{"bbox": [1, 2, 3, 4]}], "entry 0: expected an object with"),
        ([{"image_id": True, "bbox": [1, 2, 3, 4]}], "entry 0: expected an object with"),
        ([{"image_id": 1, "bbox": [1, 2, 3, 4]}, [1]], "entry 1: expected an object with"),
        ([{"image_id": 1, "bbox": [1, 2, 0, 4]}], r"entry 0: expected bbox .* of positive size, got \[1, 2, 0, 4\]"),
        ([{"image_id": 1}], "entry 0: expected bbox .* got null"),
        ({"images": [{"id": 1}], "annotations": []}, 'expected images with "id" and "file_name"'),
        ({"images": [{"id": [], "file_name": "a"}], "annotations": []}, 'expected images with "id" and "file_name"'),
        ({"annotations": []}, 'expected images with "id" and "file_name"'),
    ],
)
def test_malformed_boxes_are_refused_by_file_and_entry(tmp_path: Path, content: Any, message: str) -> None:
    path = boxes_file(tmp_path, content)
    with pytest.raises(ValueError, match=message) as caught:
        read_boxes(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_boxes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="expected JSON"):
        read_boxes(tmp_path / "boxes.json")
