"""Read boxes that a user brought, in JSON, and find those of an image."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

Boxes = list[list[float]]
T = TypeVar("T")
_LARGEST = 1e7  # pixels: float32 still tells whole ones apart


def look_up(entries: Mapping[str, T], path: str, source: str) -> T:
    """Return an image's entry: listed by its path as given, else its file name, its stem, or its COCO number.

    Raises ValueError that names the image and `source` if there is none.
    """
    stem = Path(path).stem
    number = str(int(stem)) if stem.isdecimal() else stem
    for key in (path, os.path.normpath(path), Path(path).name, stem, number):
        if key in entries:
            return entries[key]
    raise ValueError(f"{path}: expected an entry for it in {source}, got none")


class GivenBoxes:
    """Hold boxes that a user brought, by image: [x1, y1, x2, y2] in pixels, in the order of the file."""

    def __init__(self, source: str, boxes: Mapping[str, Boxes]) -> None:
        self.source = source
        self._boxes = boxes

    def of(self, path: str) -> Boxes:
        """Return an image's boxes; an empty entry is one. Raises ValueError if the file has no entry (`look_up`)."""
        return look_up(self._boxes, path, self.source)


def read_boxes(path: Path) -> GivenBoxes:
    """Read boxes from JSON: `{image: [[x1, y1, x2, y2], ...]}` or COCO's `[{"image_id", "bbox": [x, y, w, h]}, ...]`.

    A list may name images by "file_name" instead; a whole COCO file with "images" and "annotations" will do, too.
    Raises ValueError, one sentence that names the file and the entry, if anything else is found.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got something else ({' '.join(str(error).split())})") from error
    names: dict[Any, Any] = {}
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        names = _image_names(content.get("images"), path)
        content = content["annotations"]
    if isinstance(content, dict):
        return GivenBoxes(str(path), {key: _boxes(value, f"{path}: {key!r}") for key, value in content.items()})
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected an object of images or a list of boxes, got {type(content).__name__}")
    boxes: dict[str, Boxes] = {name: [] for name in names.values()}
    for index, entry in enumerate(content):
        name, box = _coco_box(entry, f"{path}: entry {index}", names)
        boxes.setdefault(name, []).append(box)
    return GivenBoxes(str(path), boxes)


def _image_names(images: Any, path: Path) -> dict[Any, str]:
    """Map the image ids of a COCO file to its file names."""
    try:
        return {image["id"]: str(image["file_name"]) for image in images}
    except (TypeError, KeyError) as error:
        raise ValueError(f'{path}: expected images with "id" and "file_name", got others') from error


def _coco_box(entry: Any, where: str, names: Mapping[Any, str]) -> tuple[str, list[float]]:
    """Return image and xyxy box of one COCO entry."""
    image = entry.get("file_name", entry.get("image_id")) if isinstance(entry, dict) else None
    if isinstance(image, bool) or not isinstance(image, str | int):
        raise ValueError(f'{where}: expected an object with "image_id" or "file_name", got {_short(entry)}')
    box = entry.get("bbox")
    if not _is_box(box) or min(box[2:]) <= 0:
        raise ValueError(f"{where}: expected bbox [x, y, width, height] of positive size, got {_short(box)}")
    x, y, width, height = map(float, box)
    return names.get(image, str(image)), [x, y, x + width, y + height]


def _boxes(value: Any, where: str) -> Boxes:
    """Check the boxes of one image."""
    if not isinstance(value, list):
        raise ValueError(f"{where}: expected a list of boxes [x1, y1, x2, y2], got {_short(value)}")
    for index, box in enumerate(value):
        if not _is_box(box) or box[2] <= box[0] or box[3] <= box[1]:
            what = "[x1, y1, x2, y2] in pixels with x1 < x2 and y1 < y2"
            raise ValueError(f"{where}, box {index}: expected {what}, got {_short(box)}")
    return [[float(v) for v in box] for box in value]


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_coordinate, value))


def _is_coordinate(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and abs(value) <= _LARGEST if isinstance(value, float) else abs(value) <= _LARGEST


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
