"""Read and check what COCO's own programs are given: annotation files and result rows."""

from __future__ import annotations

import json
import reprlib
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Id = int | str
Row = Mapping[str, Any]
_LISTS = ("images", "annotations", "categories")


def read_tables(file: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the three lists of an annotation file, of objects each; nothing is known of what those hold."""
    try:
        content = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{file}: expected a COCO annotation file, got no such file") from None
    except OSError as error:
        raise ValueError(f"{file}: expected a COCO annotation file, got {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: expected COCO JSON, got a damaged or truncated file ({error})") from error
    if not isinstance(content, dict) or any(not isinstance(content.get(key), list) for key in _LISTS):
        got = reprlib.repr(sorted(content) if isinstance(content, dict) else content)
        raise ValueError(f"{file}: expected COCO JSON with the lists {', '.join(_LISTS)}, got {got}")
    for key in _LISTS:
        for place, row in enumerate(content[key], start=1):
            if not isinstance(row, dict):
                raise ValueError(f"{file}: expected objects in {key}, got {reprlib.repr(row)} at place {place}")
    return content


def _require(row: Row, place: int, key: str, kind: str, where: str) -> None:
    """Raise ValueError unless the value of a row is of a kind that `_KINDS` knows."""
    if not _KINDS[kind](row.get(key)):
        got = reprlib.repr(row[key]) if key in row else "none"
        raise ValueError(f"{where}, row {place}: expected {kind} as {key}, got {got}")


def complete_annotations(annotations: list[dict[str, Any]], where: str) -> None:
    """Check what is measured of each annotation and fill in what is missing; see `coco_file_ap`."""
    for place, row in enumerate(annotations, start=1):
        _require(row, place, "bbox", "four finite numbers", where)
        if row.get("area") is None:
            row["area"] = row["bbox"][2] * row["bbox"][3]
        if row.get("iscrowd") is None:
            row["iscrowd"] = 0
        for key, kind in (("area", "a finite number"), ("iscrowd", "0 or 1")):
            _require(row, place, key, kind, where)
        if row.get("id") is not None:
            _require(row, place, "id", "a finite number", where)
    free = max((int(row["id"]) for row in annotations if row.get("id") is not None), default=0)
    for row in annotations:
        if row.get("id") is None:
            row["id"] = free = max(free, 0) + 1


def check_ids(tables: Mapping[str, list[dict[str, Any]]], file: Path) -> None:
    """Raise ValueError unless all ids are there and those of images and those of categories are of one kind each."""
    for table, keys in (("images", ("id",)), ("categories", ("id",)), ("annotations", ("image_id", "category_id"))):
        for place, row in enumerate(tables[table], start=1):
            for key in keys:
                _require(row, place, key, "an integer or a text", f"{file}: {table}")
        if "id" in keys and len({isinstance(row["id"], str) for row in tables[table]}) > 1:
            raise ValueError(f"{file}: expected integers or texts as ids of {table}, got both")  # not to be sorted


def check_integers(tables: Mapping[str, list[dict[str, Any]]], rows: Sequence[Row], file: Path) -> None:
    """Raise ValueError for ids that faster-coco-eval cannot take; pycocotools takes texts too."""
    everything = (row for table in (*map(tables.__getitem__, _LISTS), rows) for row in table)
    for value in (row[key] for row in everything for key in ("id", "image_id", "category_id") if key in row):
        if not isinstance(value, int):
            raise ValueError(f"{file}: expected integer ids for faster-coco-eval, got {reprlib.repr(value)}")


def result_row(row: Any, place: int) -> dict[str, Any]:
    """Return a copy of a result row that is sound, of what is measured alone, so that nothing else is looked at."""
    if not isinstance(row, Mapping):
        raise ValueError(f"results, row {place}: expected an object, got {reprlib.repr(row)}")
    for key in ("image_id", "category_id"):
        _require(row, place, key, "an integer or a text", "results")
    _require(row, place, "bbox", "four finite numbers", "results")
    _require(row, place, "score", "a finite number", "results")
    return sound_row(row["image_id"], row["category_id"], list(row["bbox"]), row["score"])


def sound_row(image: Id, category: Id, box: list[float], score: float) -> dict[str, Any]:
    """Return a result row; an empty outline spares the programs making one of eight numbers for every box."""
    return {"image_id": image, "category_id": category, "bbox": box, "score": score, "segmentation": []}


def is_id(value: Any) -> bool:
    """Tell whether a value may be the id of an image or a category."""
    whole = isinstance(value, int | str) or (isinstance(value, float) and value.is_integer())
    return whole and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    # an integer of 400 digits cannot be asked whether it is finite, but it can be compared
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


_KINDS: dict[str, Callable[[Any], bool]] = {
    "an integer or a text": is_id,
    "a finite number": _is_number,
    "four finite numbers": lambda v: isinstance(v, list | tuple) and len(v) == 4 and all(map(_is_number, v)),
    "0 or 1": lambda v: v in (0, 1),
    "a text": lambda v: isinstance(v, str),
}


def name_categories(categories: Sequence[Row], file: Path) -> dict[Id, str]:
    """Return {category id: name}. Raises ValueError for a category without a name."""
    for place, row in enumerate(categories, start=1):
        _require(row, place, "name", "a text", f"{file}: categories")
    return {row["id"]: row["name"] for row in categories}


def unlike_names(names: Mapping[Id, str]) -> dict[Id, str]:
    """Return the names, those that stand for several categories with the id of each."""
    count = Counter(names.values())
    return {key: name if count[name] == 1 else f"{name} ({key})" for key, name in names.items()}
