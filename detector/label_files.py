"""Read what files say of the classes that whole images show: folders by class, VOC's lists of one class, CSV.

What is wrong with a file goes to a `detector.findings.Ledger`; one that is strict raises at the first.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .findings import Ledger
from .images import SUFFIXES

# Where VOC's lists do not say how the file of an image ends, the usual ends come first.
_ENDS = list(dict.fromkeys((".jpg", ".jpeg", ".png", *sorted(SUFFIXES))))
_COLUMNS = ("path", "label")


@dataclass(frozen=True, slots=True, eq=False)
class LabelRecord:
    """Hold what a file says of one image.

    name: folder and file name, with any character. source: the file or folder that says it. marks: by class name 1
    (shown), 0 (left out: only difficult objects, or nothing known) or -1 (not shown).
    """

    name: str
    path: Path
    source: Path
    marks: dict[str, int]


@dataclass(frozen=True, slots=True, eq=False)
class LabelTree:
    """Hold one data set: its images and the classes it names, whether it has an image of them or not.

    multi_label: whether an image may show no class or several. unstated: the mark of a class that an image's marks
    lack, -1 or 0. detection: whether the class names are those of a detection data set, which has several spellings.
    """

    file: Path
    records: tuple[LabelRecord, ...]
    class_names: tuple[str, ...]
    multi_label: bool
    unstated: int = -1
    detection: bool = False


def read_folder(root: Path, ledger: Ledger) -> LabelTree:
    """Read ROOT/CLASS/**/IMAGE, in the order of torchvision's ImageFolder: by class, folder and file name.

    Hidden files and folders, and files that do not end like an image, are passed over. Links are followed, but into
    no folder a second time.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        ledger.add("missing-list", root, f"expected a folder with one folder of images per class, got {_reason(error)}")
        return LabelTree(root, (), (), False)
    if not names:
        ledger.add("missing-list", root, "expected one folder of images per class, got none")
    root = root.resolve()
    records = []
    for name in names:
        for path in _images(root / name):
            relative = path.relative_to(root)
            parts = (root.name, *relative.parent.parts, relative.stem)
            records.append(LabelRecord("_".join(parts), path, root / name, {name: 1}))
    return LabelTree(root, tuple(records), tuple(names), False)


def _images(folder: Path) -> Iterator[Path]:
    """Yield the images of a folder and of those in it."""
    found, seen = [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        place = os.path.realpath(parent)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if place not in seen else []
        if place not in seen:
            found.append((parent, files))
        seen.add(place)
    for parent, files in sorted(found):
        for name in sorted(files):
            path = Path(parent, name)
            if not name.startswith(".") and path.suffix.lower() in SUFFIXES:
                yield path


def read_class_lists(root: Path, split: str, ledger: Ledger) -> LabelTree | None:
    """Read ROOT/ImageSets/Main/CLASS_SPLIT.txt of all classes that have one; None if there is no such list.

    A line is `000012 -1`, `000012  0` or `000012  1`. Images come in the order in which the lists first name them. Of
    an image that a list does not name, it says nothing: its mark is 0.
    """
    folder = root / "ImageSets" / "Main"
    lists = _class_lists(folder, split)
    if not lists:
        return None
    images = (root / "JPEGImages").resolve()
    if not images.is_dir():
        ledger.add("missing-list", root / "JPEGImages", "expected the folder of a VOC tree, got no such folder")
        return LabelTree(folder, (), (), True, 0)
    marks: dict[str, dict[str, int]] = {}
    sources: dict[str, Path] = {}
    for label, path in lists.items():
        for name, mark in _read_marks(path, ledger).items():
            marks.setdefault(name, {})[label] = mark
            sources.setdefault(name, path)
    prefix, records = root.resolve().name, []
    for name, own in marks.items():
        paths = [images / f"{name}{end}" for suffix in _ENDS for end in (suffix, suffix.upper())]
        image = next((path for path in paths if _is_file(path)), None)
        if image is None:
            text = f"expected an image that {sources[name]} lists, got no such file"
            ledger.add("missing-image", paths[0], text)
        else:
            records.append(LabelRecord(f"{prefix}_{name}", image, sources[name], own))
    return LabelTree(folder, tuple(records), tuple(lists), True, 0, detection=True)


def _class_lists(folder: Path, split: str) -> dict[str, Path]:
    """Return the lists of one class by class name; `a_train.txt` may also be a plain list of the split `a_train`.

    Then `cat_a_train.txt` belongs to that split.
    """
    files = {path.stem.removesuffix(f"_{split}"): path for path in sorted(folder.glob("*.txt")) if path.is_file()}
    files = {name: path for name, path in files.items() if name and path.stem == f"{name}_{split}"}
    plain = {name for name, path in files.items() if not _has_marks(path)}
    return {
        name: path
        for name, path in files.items()
        if name not in plain and not any(name.endswith(f"_{other}") for other in plain)
    }


def _has_marks(path: Path) -> bool:
    """Tell whether the first line of a list that is not empty ends with a mark; a file that is no text may have any."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = next((line for line in file if line.strip()), "")
    except (OSError, UnicodeDecodeError):
        return True
    return _mark(first) is not None


def _mark(line: str) -> tuple[str, int] | None:
    match = re.fullmatch(r"(\S.*?)\s+(-1|0|1)", line.strip())
    return (match[1], int(match[2])) if match else None


def _read_marks(path: Path, ledger: Ledger) -> dict[str, int]:
    """Return the mark of every image that a list of one class names."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        ledger.add("damaged-list", path, f"expected a text file with lines like `000012 -1`, got {_reason(error)}")
        return {}
    marks: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        found = _mark(line)
        if found is None:
            text = f"expected an image name and one of -1, 0 and 1, got {line.strip()!r:.60}"
            ledger.add("damaged-list", path, text, f"line {number}")
            continue
        name, mark = found
        if marks.setdefault(name, mark) != mark:
            text = f"expected one mark for every image, got {marks[name]} and {mark} for {name}"
            ledger.add("damaged-list", path, text, f"line {number}")
    return marks


def read_csv(path: Path, ledger: Ledger) -> LabelTree:
    """Read a CSV file whose header names the columns `path` and `label`; rows of one path are merged.

    Paths are relative to the folder of the file. A label is one class, several with `;` or `|` between, or empty: no
    class. The set is multi-label if any image has other than one class.
    """
    records: dict[Path, LabelRecord] = {}
    folder = path.parent.resolve()
    for line, name, label in _rows(path, ledger):
        image = Path(os.path.normpath(folder / name))
        if image not in records and not _is_file(image):
            ledger.add("missing-image", image, f"expected an image that {path} lists in line {line}, got no such file")
            continue
        whole = f"{image.parent.name}_{image.stem}"
        record = records.setdefault(image, LabelRecord(whole, image, path, {}))
        parts = (" ".join(part.split()) for part in re.split(r"[;|]", label))
        record.marks.update({part: 1 for part in parts if part})
    if not records and not ledger.refused:
        ledger.add("damaged-list", path, "expected at least one row below the header, got none")
    names = sorted({name for record in records.values() for name in record.marks})
    multi_label = any(len(record.marks) != 1 for record in records.values())
    return LabelTree(path, tuple(records.values()), tuple(names), multi_label)


def _rows(path: Path, ledger: Ledger) -> list[tuple[int, str, str]]:
    """Return line, path and label of every row that has as many cells as the header."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            rows = [(1, next(reader, []))]
            rows += [(reader.line_num, row) for row in reader if row]
    except (FileNotFoundError, NotADirectoryError):
        ledger.add("missing-list", path, "expected a CSV file, got no such file")
        return []
    except (OSError, UnicodeDecodeError) as error:
        ledger.add("damaged-list", path, f"expected a CSV file in UTF-8, got {_reason(error)}")
        return []
    except csv.Error as error:
        ledger.add("damaged-list", path, f"expected CSV, got a damaged file ({error})", f"line {reader.line_num}")
        return []
    header = [cell.strip().casefold() for cell in rows[0][1]]
    if any(header.count(column) != 1 for column in _COLUMNS):
        got = ", ".join(header) or "none"
        ledger.add("damaged-list", path, f"expected a header with path and label, got {got:.120}", "line 1")
        return []
    at_path, at_label = (header.index(column) for column in _COLUMNS)
    whole = []
    for line, row in rows[1:]:
        if len(row) != len(header):
            text = f"expected {len(header)} cells as in the header, got {len(row)}"
            ledger.add("damaged-list", path, text, f"line {line}")
        elif not row[at_path].strip():
            ledger.add("damaged-list", path, "expected the path of an image, got none", f"line {line}")
        else:
            whole.append((line, row[at_path].strip(), row[at_label]))
    return whole


def _is_file(path: Path) -> bool:
    """Tell whether there is such a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else "other bytes"
