"""Read annotation files: VOC's XML, one per image, and COCO's JSON, one per data set.

Both become `Annotation`, in the conventions of `detector.structures`. VOC's boxes are 1-based and inclusive, so
[xmin, xmax] becomes [xmin - 1, xmax); COCO's [x, y, width, height] are continuous and become [x, x + width).
"""

from __future__ import annotations

import json
import logging
import math
import os
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from .structures import Size

Box = tuple[float, float, float, float]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AnnotatedObject:
    """Hold one object as its file describes it: xyxy, x2 and y2 exclusive, area in pixels (of the mask, in COCO)."""

    name: str
    box: Box
    difficult: bool
    area: float


@dataclass(frozen=True, slots=True)
class Annotation:
    """Hold what a file says of one image.

    file: the image's file name, empty if the annotation does not decide it. size: (height, width), None if it is not
    given. dropped: how many boxes without area were left out. source_id: the image's id in a COCO file, None in VOC.
    """

    file: str
    size: Size | None
    objects: tuple[AnnotatedObject, ...]
    dropped: int = 0
    source_id: int | str | None = None


def read_voc(path: str | os.PathLike[str]) -> Annotation:
    """Read one VOC XML file.

    Fractional coordinates are kept, a missing or empty <difficult> is 0, parts of an object are not objects. A box
    with xmax <= xmin or ymax <= ymin has no area: it is left out, logged and counted.

    Raises FileNotFoundError if there is no such file and ValueError if it is not a VOC annotation; one sentence each.
    """
    root = _xml_root(Path(path))
    objects, dropped = [], 0
    for element in root.iterfind("object"):
        name = " ".join((element.findtext("name") or "").split())
        if not name:
            raise ValueError(f"{path}: expected a <name> in every <object>, got none")
        x1, y1, x2, y2 = (_xml_number(element.find("bndbox"), key, path) for key in ("xmin", "ymin", "xmax", "ymax"))
        if x2 <= x1 or y2 <= y1:
            logger.warning("%s: left out a %s without area: %g, %g, %g, %g", path, name, x1, y1, x2, y2)
            dropped += 1
            continue
        box = (x1 - 1, y1 - 1, x2, y2)
        difficult = (element.findtext("difficult") or "").strip() or "0"
        if difficult not in ("0", "1"):
            raise ValueError(f"{path}: expected 0 or 1 in <difficult>, got {difficult!r}")
        objects.append(AnnotatedObject(name, box, difficult == "1", (x2 - x1 + 1) * (y2 - y1 + 1)))
    return Annotation("", _xml_size(root.find("size")), tuple(objects), dropped)


def _xml_root(path: Path) -> ElementTree.Element:
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: expected a VOC annotation, got no such file") from None
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # LookupError: an encoding that does not exist
        raise ValueError(f"{path}: expected VOC XML, got a damaged or truncated file ({error})") from error
    if root.tag != "annotation":
        raise ValueError(f"{path}: expected VOC XML with the root <annotation>, got <{root.tag}>")
    return root


def _xml_number(parent: ElementTree.Element | None, key: str, path: str | os.PathLike[str]) -> float:
    text = "" if parent is None else (parent.findtext(key) or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{path}: expected a finite number in <bndbox><{key}> of every <object>, got {text!r}")
    return value


def _xml_size(element: ElementTree.Element | None) -> Size | None:
    """Return (height, width), or None unless both are positive: some tools leave them out or write 0."""
    if element is None:
        return None
    try:
        height, width = (int(float(element.findtext(key) or 0)) for key in ("height", "width"))
    except (ValueError, OverflowError):
        return None
    return (height, width) if min(height, width) > 0 else None


def read_coco(path: str | os.PathLike[str]) -> list[Annotation]:
    """Read a COCO instances file: one Annotation per image, in the order of the image ids, as COCO evaluates them.

    Category ids may be any; iscrowd becomes `difficult`. Boxes without area and annotations of images that are not
    listed are left out, logged once and counted (the latter with no image).

    Raises FileNotFoundError if there is no such file and ValueError if it is not in COCO's format; one sentence each.
    """
    return read_coco_and_categories(path)[0]


def read_coco_and_categories(path: str | os.PathLike[str]) -> tuple[list[Annotation], dict[int | str, str]]:
    """Read a COCO instances file as `read_coco` does; return also {category id: name} of all that it lists."""
    tables = _json_tables(Path(path))
    try:
        names = {row["id"]: " ".join(str(row["name"]).split()) for row in tables["categories"]}
        images = sorted(tables["images"], key=lambda row: row["id"])
        rows = defaultdict(list)
        for row in tables["annotations"]:
            rows[row["image_id"]].append(row)
        annotations = [_coco_image(row, rows.pop(row["id"], []), names, path) for row in images]
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"no {error.args[0]!r} in one" if isinstance(error, KeyError) else "another type"
        raise ValueError(f"{path}: expected COCO images, categories and annotations, got {reason}") from error
    if dropped := sum(a.dropped for a in annotations):
        logger.warning("%s: left out %d boxes without area", path, dropped)
    if rows:
        logger.warning("%s: left out the annotations of %d images that are not listed", path, len(rows))
    return annotations, names


def _json_tables(path: Path) -> dict[str, Any]:
    try:
        tables = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: expected a COCO annotation file, got no such file") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected COCO JSON, got a damaged or truncated file ({error})") from error
    keys = ("images", "annotations", "categories")
    if not isinstance(tables, dict) or any(not isinstance(tables.get(key), list) for key in keys):
        got = ", ".join(sorted(tables)) or "nothing" if isinstance(tables, dict) else type(tables).__name__
        raise ValueError(f"{path}: expected COCO JSON with the lists {', '.join(keys)}, got {got}")
    return tables


def _coco_image(
    image: dict[str, Any], rows: list[dict[str, Any]], names: dict[Any, str], path: str | os.PathLike[str]
) -> Annotation:
    objects, dropped = [], 0
    for row in rows:
        if row["category_id"] not in names:
            raise ValueError(f"{path}: expected a listed category in every annotation, got id {row['category_id']!r}")
        box = row["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(_is_finite(value) for value in box):
            where = f"annotation {row.get('id')!r}"
            raise ValueError(f"{path}: expected four finite numbers as bbox, got {box!r:.80} in {where}")
        x, y, width, height = map(float, box)
        if width <= 0 or height <= 0:
            dropped += 1
            continue
        area = float(row["area"]) if _is_finite(row.get("area")) else width * height
        crowd = bool(row.get("iscrowd", 0))
        objects.append(AnnotatedObject(names[row["category_id"]], (x, y, x + width, y + height), crowd, area))
    sides = [int(side) for side in (image.get("height"), image.get("width")) if _is_finite(side) and side >= 1]
    size = (sides[0], sides[1]) if len(sides) == 2 else None
    return Annotation(str(image["file_name"]), size, tuple(objects), dropped, image["id"])


def _is_finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
