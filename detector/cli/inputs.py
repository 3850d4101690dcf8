"""Find the images that a command line means, read the boxes a user brought, and name the pictures to write."""

from __future__ import annotations

import glob
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detector.images import SUFFIXES

Boxes = list[list[float]]
_LARGEST_JPEG = 65500  # pixels of a side: libjpeg's JPEG_MAX_DIMENSION
_LARGEST = 1e7  # pixels: float32 still tells whole ones apart


def find_images(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Expand files, folders and globs into image files, each once, in the order given; folders and globs are sorted.

    A folder stands for the files in it, not below it, whose suffix is an image's; hidden ones are left out. A file
    that is named, or matched by a glob, counts whatever its suffix. Returns the files and one sentence for every
    path that stands for none.
    """
    files: dict[str, str] = {}
    problems = []
    for path in paths:
        found = _expand(path)
        if not found:
            problems.append(f"{path}: expected an image, a folder of images or a glob that matches some, got none")
        for file in found:
            files.setdefault(os.path.abspath(file), file)  # noqa: PTH100 (a link keeps its own name)
    return list(files.values()), problems


def _expand(path: str) -> list[str]:
    name = str(Path(path).expanduser()) if path.startswith("~") else path  # a quoted ~ reaches us as it is
    if Path(name).is_dir():
        return _images_in(name)
    if os.path.lexists(name):
        return [name]
    found = []
    for match in sorted(glob.glob(name, recursive=True)):  # noqa: PTH207 (absolute patterns, too)
        found += _images_in(match) if Path(match).is_dir() else [match]
    return found


def _images_in(folder: str) -> list[str]:
    entries = sorted(entry.path for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith("."))
    return [path for path in entries if Path(path).suffix.lower() in SUFFIXES]


class PictureNames:
    """Give every input a picture name in a folder that is its own and no input's.

    The picture of STEM.png is STEM.png, that of any other file STEM.jpg; if that is taken, STEM-2.jpg and so on.
    A picture with a side of more pixels than a JPEG can have is a PNG, too.
    """

    def __init__(self, folder: Path, inputs: Iterable[str]) -> None:
        self._folder = folder
        self._taken = {_key(path) for path in inputs}

    def choose(self, path: str, size: tuple[int, int]) -> Path:
        """Return the path of the picture for an input of (height, width) pixels."""
        stem, png = Path(path).stem, Path(path).suffix.lower() == ".png" or max(size) > _LARGEST_JPEG
        suffix = ".png" if png else ".jpg"
        target, number = self._folder / f"{stem}{suffix}", 1
        while _key(target) in self._taken:
            number += 1
            target = self._folder / f"{stem}-{number}{suffix}"
        self._taken.add(_key(target))
        return target


def _key(path: str | Path) -> str:
    """Return what two names of one file have in common, also where case does not count."""
    return os.path.realpath(path).casefold()


class GivenBoxes:
    """Hold boxes that a user brought, by image: [x1, y1, x2, y2] in pixels, in the order of the file."""

    def __init__(self, source: str, boxes: Mapping[str, Boxes]) -> None:
        self.source = source
        self._boxes = boxes

    def of(self, path: str) -> Boxes:
        """Return an image's boxes: listed by its path as given, else its file name, its stem, or its COCO number.

        Raises ValueError if the file has no entry for the image; an empty entry is one.
        """
        stem = Path(path).stem
        number = str(int(stem)) if stem.isdecimal() else stem
        for key in (path, os.path.normpath(path), Path(path).name, stem, number):
            if key in self._boxes:
                return self._boxes[key]
        raise ValueError(f"{path}: expected an entry for it in {self.source}, got none")


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
