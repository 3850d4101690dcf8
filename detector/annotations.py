"""Read annotation files: VOC's XML, one per image, and COCO's JSON, one per data set.

Both become `Annotation`, in the conventions of `detector.structures`. VOC's boxes are 1-based and inclusive, so
[xmin, xmax] becomes [xmin - 1, xmax); COCO's [x, y, width, height] are continuous and become [x, x + width).
What is wrong with a file goes to a `detector.findings.Ledger`.
"""

from __future__ import annotations

import math
import os
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .findings import Ledger
from .instances import LISTS, identity, is_number, read_lists, shown
from .structures import Size

Box = tuple[float, float, float, float]
MAX_XML_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class AnnotatedObject:
    """Hold one object as its file describes it: xyxy, x2 and y2 exclusive, area in pixels (of the mask, in COCO).

    number: its id in a COCO file (None if it has none), its place in a VOC file, from 1.
    """

    name: str
    box: Box
    difficult: bool
    area: float
    number: int | str | None = None


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


UNREAD = Annotation("", None, ())  # stands for a file that could not be read


def read_voc(path: str | os.PathLike[str], ledger: Ledger | None = None) -> Annotation:
    """Read one VOC XML file.

    Fractional coordinates are kept, a missing or empty <difficult> is 0, parts of an object are not objects. A box
    with xmax <= xmin or ymax <= ymin has no area: it is left out, logged and counted.

    ledger: takes the findings; without one, or with a strict one, raises FileNotFoundError if there is no such file
    and ValueError if it is not a VOC annotation, one sentence each. Else what cannot be read is left out, and `UNREAD`
    stands for the whole file.
    """
    own = Ledger(strict=True) if ledger is None else ledger
    before = own.counts.get("no-area", 0)
    root = _xml_root(Path(path), own)
    if root is None:
        return UNREAD
    elements = enumerate(root.iterfind("object"), 1)
    objects = [_voc_object(element, number, Path(path), own) for number, element in elements]
    if ledger is None:
        own.log()
    dropped = own.counts.get("no-area", 0) - before
    return Annotation("", _xml_size(root.find("size")), tuple(item for item in objects if item is not None), dropped)


def _voc_object(element: ElementTree.Element, number: int, path: Path, ledger: Ledger) -> AnnotatedObject | None:
    """Return an object, or None if it cannot be read or has no area, which the ledger gets to know."""
    name = " ".join((element.findtext("name") or "").split())
    sides, difficult = _xml_box(element), (element.findtext("difficult") or "").strip() or "0"
    bad = next((key for key, (_, value) in sides.items() if not math.isfinite(value)), None)
    fault = ""
    if not name:
        fault = "expected a <name> in every <object>, got none"
    elif bad is not None:
        fault = f"expected a finite number in <bndbox><{bad}> of every <object>, got {sides[bad][0]!r:.40}"
    elif difficult not in ("0", "1"):
        fault = f"expected 0 or 1 in <difficult>, got {difficult!r:.40}"
    if fault:
        ledger.add("damaged-object", path, fault, f"object {number}")
        return None
    x1, y1, x2, y2 = (value for _, value in sides.values())
    if x2 <= x1 or y2 <= y1:
        got = ", ".join(f"{key} {value:g}" for key, (_, value) in sides.items())
        ledger.add("no-area", path, f"expected xmin < xmax and ymin < ymax, got {got}", f"object {number}, {name}")
        return None
    return AnnotatedObject(name, (x1 - 1, y1 - 1, x2, y2), difficult == "1", (x2 - x1 + 1) * (y2 - y1 + 1), number)


def _xml_box(element: ElementTree.Element) -> dict[str, tuple[str, float]]:
    """Return the text and the number of every side of a box, NaN for a text that is none."""
    sides = {}
    for key in ("xmin", "ymin", "xmax", "ymax"):
        text = (element.findtext(f"bndbox/{key}") or "").strip()
        try:
            sides[key] = (text, float(text))
        except ValueError:
            sides[key] = (text, math.nan)
    return sides


def _xml_root(path: Path, ledger: Ledger) -> ElementTree.Element | None:
    kind = "damaged-annotation"
    try:
        if path.stat().st_size > MAX_XML_BYTES:
            raise ValueError(f"of more than {MAX_XML_BYTES >> 20} MiB")
        root = ElementTree.fromstring(path.read_bytes())
        if root.tag == "annotation":
            return root
        fault = f"expected VOC XML with the root <annotation>, got <{root.tag:.40}>"
    except (FileNotFoundError, NotADirectoryError):
        kind, fault = "missing-annotation", "expected a VOC annotation, got no such file"
    except OSError as error:
        fault = f"expected a VOC annotation, got {error.strerror}"
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # LookupError: an encoding that does not exist
        fault = f"expected VOC XML, got a damaged or truncated file ({error})"
    ledger.add(kind, path, fault)
    return None


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

    Category ids may be any; iscrowd becomes `difficult`. Boxes of no area and annotations of images that are not listed
    are left out and logged.

    Raises FileNotFoundError if there is no such file and ValueError if it is not in COCO's format; one sentence each.
    """
    return read_coco_and_categories(path)[0]


def read_coco_and_categories(
    path: str | os.PathLike[str], ledger: Ledger | None = None
) -> tuple[list[Annotation], dict[int | str, str]]:
    """Read a COCO instances file as `read_coco` does; return also {category id: name} of all that it lists.

    ledger: takes the findings; one that is not strict gets them all, and what cannot be read is left out.
    """
    own, file = Ledger(strict=True) if ledger is None else ledger, Path(path)
    tables = _lists(file, own)
    names = {key: " ".join(str(row["name"]).split()) for key, row in _by_id(tables, "categories", file, own).items()}
    images = _by_id(tables, "images", file, own)
    rows = _coco_objects(tables, (names, images), file, own)
    annotations = [
        _coco_image(key, images[key], rows[key]) for key in sorted(images, key=lambda key: (isinstance(key, str), key))
    ]
    if ledger is None:
        own.log()
    return annotations, names


def _lists(path: Path, ledger: Ledger) -> dict[str, list[Any]]:
    """Return the lists of a COCO file, empty ones if it is none."""
    try:
        return read_lists(path)
    except (FileNotFoundError, ValueError) as error:
        kind = "missing-list" if isinstance(error, FileNotFoundError) else "damaged-list"
        ledger.add(kind, path, str(error).removeprefix(f"{path}: "))
        return {name: [] for name in LISTS}


def _entries(
    tables: dict[str, list[Any]], table: str, keys: tuple[str, ...], path: Path, ledger: Ledger
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the content of the entries of a list that have all of the keys; report the others."""
    what = "expected COCO images, categories and annotations, got"
    for place, row in enumerate(tables[table], 1):
        entry = f"entry {place} of {table}"
        if not isinstance(row, dict):
            ledger.add("damaged-entry", path, f"{what} another type", entry)
        elif missing := [key for key in keys if key not in row]:
            ledger.add("damaged-entry", path, f"{what} no {missing[0]!r}", entry)
        else:
            yield entry, row


def _by_id(tables: dict[str, list[Any]], table: str, path: Path, ledger: Ledger) -> dict[int | str, dict[str, Any]]:
    """Return the images or categories by their ids, the first of each id, and report the others."""
    single, key = ("image", "file_name") if table == "images" else ("category", "name")
    found: dict[int | str, dict[str, Any]] = {}
    for entry, row in _entries(tables, table, ("id", key), path, ledger):
        number = identity(row["id"])
        name = str(row[key]) if table == "categories" and isinstance(row[key], int) else row[key]
        if number is None:
            got = shown(row["id"])
            ledger.add("damaged-entry", path, f"expected a number or a text as id of every {single}, got {got}", entry)
        elif not isinstance(name, str) or not name.strip():
            got = shown(row[key])
            ledger.add("damaged-entry", path, f"expected a text as {key} of every {single}, got {got}", entry)
        elif number in found:
            got = f"id {shown(number)} again, for {name:.80}"
            ledger.add(f"repeated-{single}-id", path, f"expected an id of its own for every {single}, got {got}", entry)
        else:
            found[number] = row
    return found


def _coco_objects(
    tables: dict[str, list[Any]],
    listed: tuple[dict[int | str, str], dict[int | str, dict[str, Any]]],
    path: Path,
    ledger: Ledger,
) -> dict[int | str, list[AnnotatedObject | None]]:
    """Return the objects of every image, None for one without area. listed: the categories and the images by id."""
    names, images = listed
    rows: dict[int | str, list[AnnotatedObject | None]] = defaultdict(list)
    seen: set[int | str] = set()
    for entry, row in _entries(tables, "annotations", ("image_id", "category_id", "bbox"), path, ledger):
        number, image, category = (identity(row.get(key)) for key in ("id", "image_id", "category_id"))
        where = entry if number is None else f"annotation {shown(number)}"
        if number is not None and number in seen:
            ledger.add(
                "repeated-object-id", path, "expected an id of its own for every annotation, got one again", where
            )
        elif number is not None:
            seen.add(number)
        if image is None or image not in images:
            got = f"id {shown(row['image_id'])}"
            ledger.add("unlisted-image", path, f"expected a listed image in every annotation, got {got}", where)
        elif category is None or category not in names:
            got = f"id {shown(row['category_id'])}"
            ledger.add("unknown-category", path, f"expected a listed category in every annotation, got {got}", where)
        elif fault := _coco_fault(row):
            ledger.add("damaged-object", path, fault, where)
        else:
            x, y, width, height = map(float, row["bbox"])
            if width > 0 and height > 0:
                area = float(row["area"]) if is_number(row.get("area")) else width * height
                box = (x, y, x + width, y + height)
                rows[image].append(AnnotatedObject(names[category], box, bool(row.get("iscrowd")), area, number))
                continue
            got = f"{width:g} x {height:g}"
            ledger.add(
                "no-area", path, f"expected a positive width and height, got {got}", f"{where}, {names[category]}"
            )
            rows[image].append(None)
    return rows


def _coco_fault(row: dict[str, Any]) -> str:
    """Say what is wrong with the box or the flag of an annotation, if something is."""
    box, crowd = row["bbox"], row.get("iscrowd")
    whole = isinstance(box, list) and len(box) == 4 and all(is_number(value) for value in box)
    if not whole or not all(math.isfinite(float(box[axis]) + float(box[axis + 2])) for axis in (0, 1)):
        return f"expected four finite numbers as bbox, got {shown(box)}"
    if not (crowd is None or (isinstance(crowd, int | float) and crowd in (0, 1))):
        return f"expected 0 or 1 as iscrowd, got {shown(crowd)}"
    return ""


def _coco_image(number: int | str, image: dict[str, Any], objects: list[AnnotatedObject | None]) -> Annotation:
    whole = tuple(item for item in objects if item is not None)
    sides = [int(side) for side in (image.get("height"), image.get("width")) if is_number(side) and side >= 1]
    size = (sides[0], sides[1]) if len(sides) == 2 else None
    return Annotation(image["file_name"], size, whole, len(objects) - len(whole), number)
