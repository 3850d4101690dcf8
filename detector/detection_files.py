"""Read and write detections that were made elsewhere: COCO results, VOC results, and what `sppnet detect` writes.

COCO stores [x, y, width, height]. Here x2 is x + width in float64, which rounds, so that x2 - x1 need not be the width
of the file: `Detections.to_coco` gives it back to the last digit where x, width and their sum fit into 53 bits (whole
numbers, halves, ..., float32 of like size), else with an error of at most the last digit of x2. `write_coco_results`
gives back every width of up to 6 decimals. To hand a file to pycocotools unchanged, use `read_coco_rows`.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .classes import match_classes
from .datasets import Dataset
from .files import write_text
from .instances import identity, is_number, shown
from .result_rows import Array, ResultRows, check_images, from_detections, make_rows
from .structures import Detections
from .voc_results import is_voc_result, read_voc_results, write_voc_results

__all__ = ["read_coco_rows", "read_detections", "write_coco_results", "write_voc_results"]

_BEFORE_JSON = b"\xef\xbb\xbf\xff\xfe\x00 \t\r\n"  # byte order marks, the zeros of UTF-16 and white space
_CHUNK = 4096
_WHAT = "a JSON list of COCO results or of what sppnet detect writes, or a folder of VOC results"
_log = logging.getLogger(__name__)


def read_detections(path: Path, dataset: Dataset) -> list[Detections]:
    """Return the detections of every sample of a data set, best first, with the numbers of the file in float64.

    path is one of
    - a JSON list of COCO results `{"image_id", "category_id", "bbox", "score"}`. The ids are those of the COCO file
      that the data set is from if it has `category_ids`; else `Sample.image_id`, and categories count from 1, as
      `sppnet evaluate --out` writes them. Boxes are [x, y, x + width, y + height].
    - a folder of VOC results, see `detector.voc_results`.
    - the detections.json of `sppnet detect`. An image is found by its path, else by its file name.

    Each knows its place in the file (`Detections.order`). Images and classes that the data set lacks are ignored and
    logged, unless the file has no others.

    Raises FileNotFoundError if there is no such file or folder, and ValueError for anything malformed, for NaN and
    infinity and for x2 < x1, one sentence that names the file and the row.
    """
    if path.is_dir():
        return read_voc_results(path, dataset).to_detections(dataset)
    content = _read_list(path)
    if content and isinstance(content[0], dict) and "detections" in content[0]:
        return _from_detect(content, path, dataset).to_detections(dataset)
    _check_coco_rows(content, path)
    return _from_coco(content, path, dataset).to_detections(dataset)


def read_coco_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a COCO results file as they are, in their order, for pycocotools.

    Every row has an `image_id` and a `category_id`, integers or texts, a `bbox` of four finite numbers of which width
    and height are not negative, and a finite `score`; it may have more. Raises as `read_detections` does.
    """
    content = _read_list(path)
    _check_coco_rows(content, path)
    return content


def write_coco_results(detections: Sequence[Detections], dataset: Dataset, path: Path) -> None:
    """Write a JSON list of COCO results, with the ids that `read_detections` expects for the data set.

    Rows are in the order of the images, or in that of the file which the detections were read from
    (`Detections.order`). Raises ValueError if the detections do not fit the data set.
    """
    rows = from_detections(detections, dataset)
    images = _image_ids(dataset)
    categories = _category_ids(dataset)
    low = rows.boxes[:, :2]
    boxes = np.concatenate([low, sides(low, rows.boxes[:, 2:])], axis=1)
    columns = zip(rows.images.tolist(), rows.labels.tolist(), boxes.tolist(), rows.scores.tolist(), strict=True)
    found = [
        {"image_id": images[image], "category_id": categories[label], "bbox": box, "score": score}
        for image, label, box, score in columns
    ]
    write_text(path, json.dumps(found, allow_nan=False) + "\n")


def sides(low: Array, high: Array) -> Array:
    """Return the width of each [x1, x2): the number with x1 + width == x2 in float64, of at most 6 decimals if any.

    low, high: float64 of one shape, low <= high. Where no number does (x1 < 0 can be such a case), high - low.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # coordinates near the largest number have no decimals
        plain = high - low
        choices = [np.round(plain, 6), plain, np.nextafter(plain, np.inf), np.nextafter(plain, 0)]
        return np.select([low + choice == high for choice in choices], choices, plain)


def _read_list(path: Path) -> list[Any]:
    """Return the content of a JSON file that holds a list."""
    if is_voc_result(path):
        raise ValueError(f"{path}: expected the folder with the VOC results of all classes, got the file of one")
    try:
        with path.open("rb") as file:
            start = file.read(_CHUNK).lstrip(_BEFORE_JSON)[:1].decode(errors="replace")
        if start != "[":  # before gigabytes are read to find that they are something else
            got = f"a file that begins with {start!r}" if start else "a file without text"
            raise ValueError(f"{path}: expected {_WHAT}, got {got}")
        content = _parse(path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path}: expected {_WHAT}, got no such file") from None
    except OSError as error:
        raise ValueError(f"{path}: expected {_WHAT}, got {error.strerror}") from error
    assert isinstance(content, list)  # JSON that begins with [
    return content


def _parse(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError, MemoryError) as error:
        reason = str(error) or "it does not fit into memory"
        raise ValueError(f"{path}: expected JSON, got a damaged or truncated file ({reason:.120})") from error


def _check_coco_rows(rows: Sequence[Any], path: Path) -> None:
    for place, row in enumerate(rows, start=1):
        if fault := _coco_fault(row):
            raise ValueError(f"{path}, row {place}: {fault}")


def _coco_fault(row: Any) -> str:
    """Say what is wrong with a row of COCO results, if something is."""
    if not isinstance(row, dict):
        return f"expected an object, got {shown(row)}"
    for key in ("image_id", "category_id", "bbox", "score"):
        if key not in row:
            return f"expected image_id, category_id, bbox and score, got no {key}"
    for key in ("image_id", "category_id"):
        if identity(row[key]) is None:
            return f"expected an integer or a text as {key}, got {shown(row[key])}"
    box = row["bbox"]
    if not _are_numbers(box) or not (math.isfinite(box[0] + box[2]) and math.isfinite(box[1] + box[3])):
        return f"expected four finite numbers as bbox, got {shown(box)}"
    if box[2] < 0 or box[3] < 0:
        return f"expected bbox [x, y, width, height] with no negative width or height, got {shown(box)}"
    return "" if is_number(row["score"]) else f"expected a finite number as score, got {shown(row['score'])}"


def _are_numbers(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(map(is_number, box))


def _image_ids(dataset: Dataset) -> list[int | str]:
    """Return the id of every sample in a file of COCO results."""
    own = [None if dataset.category_ids is None else sample.source_id for sample in dataset]
    return [sample.image_id if key is None else key for sample, key in zip(dataset, own, strict=True)]


def _category_ids(dataset: Dataset) -> Sequence[int]:
    return range(1, len(dataset.class_names) + 1) if dataset.category_ids is None else dataset.category_ids


def _from_coco(rows: Sequence[dict[str, Any]], path: Path, dataset: Dataset) -> ResultRows:
    """Turn rows of COCO results that are checked into those of a data set."""
    index = {key: number for number, key in enumerate(_image_ids(dataset))}
    categories: dict[Any, int] = {key: label for label, key in enumerate(_category_ids(dataset))}
    images = [index.get(row["image_id"], -1) for row in rows]
    labels = [categories.get(row["category_id"], -1) for row in rows]
    numbers = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
    numbers[:, 2:] += numbers[:, :2]
    found = make_rows(images, labels, numbers, [row["score"] for row in rows])
    check_images(found.images, [row["image_id"] for row in rows], path)
    _check_classes(labels, [row["category_id"] for row in rows], path, "category_id")
    return found


def _check_classes(labels: Sequence[int], names: Sequence[Any], path: Path, what: str) -> None:
    """Log which classes are ignored; raise ValueError if none is left. names: what the file calls each one."""
    strange = Counter(shown(name) for name, label in zip(names, labels, strict=True) if label < 0)
    if not strange:
        return
    examples = ", ".join(list(strange)[:5])
    if strange.total() == len(labels):
        raise ValueError(f"{path}: expected classes of the data set, got none, only the {what} {examples:.200}")
    count = strange.total()
    _log.warning(
        "%s: %d of %d detections are of other classes, %s %s: ignored", path, count, len(labels), what, examples
    )


def _from_detect(entries: Sequence[Any], path: Path, dataset: Dataset) -> ResultRows:
    """Turn the entries of detections.json, one for each image, into rows."""
    for place, entry in enumerate(entries, start=1):
        if fault := _entry_fault(entry):
            raise ValueError(f"{path}, image {place}: {fault}")
    found = _find_images([entry["image"] for entry in entries], path, dataset)
    for entry, image in zip(entries, found, strict=True):
        size = (entry.get("height"), entry.get("width"))
        if image >= 0 and None not in size and size != dataset[image].truth.size:
            own = " x ".join(map(str, reversed(dataset[image].truth.size)))
            got = " x ".join(map(shown, reversed(size)))
            raise ValueError(f"{path}: expected {own} pixels for {dataset[image].path}, got {got} of {entry['image']}")
    items = [(image, item) for entry, image in zip(entries, found, strict=True) for item in entry["detections"]]
    names = [item["label"] for _, item in items]
    index = match_classes(set(names), dataset.class_names)
    labels = [index.get(name, -1) for name in names]
    _check_classes(labels, names, path, "label")
    boxes, scores = [item["box"] for _, item in items], [item["score"] for _, item in items]
    return make_rows([image for image, _ in items], labels, boxes, scores)


def _entry_fault(entry: Any) -> str:
    """Say what is wrong with an entry of detections.json, if something is."""
    image = entry.get("image") if isinstance(entry, dict) else None
    if not isinstance(image, str) or not image.strip() or not image.replace(" ", "").isprintable():
        return f'expected an object with the path of an image as "image", got {shown(entry)}'
    if not isinstance(entry.get("detections"), list):
        return f'expected a list as "detections", got {shown(entry.get("detections"))}'
    for place, item in enumerate(entry["detections"], start=1):
        if not isinstance(item, dict) or not isinstance(item.get("label"), str):
            return f"detection {place}: expected an object with label, score and box, got {shown(item)}"
        if not is_number(item.get("score")):
            return f"detection {place}: expected a finite number as score, got {shown(item.get('score'))}"
        box: Any = item.get("box")
        if not _are_numbers(box) or box[0] > box[2] or box[1] > box[3]:
            return f"detection {place}: expected box [x1, y1, x2, y2] with x1 <= x2 and y1 <= y2, got {shown(box)}"
    return ""


def _find_images(names: Sequence[str], path: Path, dataset: Dataset) -> list[int]:
    """Return the index of the sample that each path means, -1 for none.

    A path means the sample with this path, else the one with this file name if no other image of the file has it.
    """
    by_path = {os.path.realpath(sample.path): index for index, sample in enumerate(dataset)}
    shared = Counter(sample.path.name for sample in dataset)
    by_name = {sample.path.name: index for index, sample in enumerate(dataset)}
    found = [by_path.get(os.path.realpath(name), -1) for name in names]
    taken = set(found)
    for place, name in enumerate(names):
        index = by_name.get(Path(name).name, -1)
        if found[place] >= 0 or index < 0 or (index in taken and shared[Path(name).name] == 1):
            continue
        if shared[Path(name).name] > 1:
            raise ValueError(f"{path}: expected one image of the data set for {name}, got several of this file name")
        found[place] = index
    twice = [index for index, count in Counter(found).items() if index >= 0 and count > 1]
    if twice:
        raise ValueError(f"{path}: expected every image once, got several that mean {dataset[twice[0]].path}")
    check_images(np.array(found, dtype=np.int64), names, path)
    return found
