"""Read and write detections as the devkit of PASCAL VOC and its server take them: one text file for each class.

`comp3_det_test_car.txt` holds lines `image confidence xmin ymin xmax ymax`: the name of the image file without suffix,
any number (larger is surer), and a box in pixels that count from 1, the last one included, fractions allowed. Here
such a box is [xmin - 1, ymin - 1, xmax, ymax), computed in float64 as `detector.annotations` does.

Not every float64 x1 has an xmin with xmin - 1 == x1. Those of float32 and those that were read from such a file have
one (below 2**-29 in size they need not); others move by less than the last digit of a float64 near xmin.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from contextlib import ExitStack
from decimal import Decimal
from itertools import chain
from pathlib import Path

import numpy as np

from .classes import match_classes
from .datasets import Dataset
from .files import replacing
from .instances import shown
from .result_rows import Array, ResultRows, check_images, from_detections, join_rows
from .structures import Detections

_FIELDS = ("confidence", "xmin", "ymin", "xmax", "ymax")
_PATTERN = "comp3_det_test_CLASS.txt"
# Some programs put a number of the run behind that of the competition: comp4-1234_det_test_car.txt.
_NAME = re.compile(r"(comp\d+(?:[-_][^_]+)?)_det_([^_].*_.+)\.txt", re.IGNORECASE | re.DOTALL)
_AMBIGUOUS = -2
_log = logging.getLogger(__name__)


def is_voc_result(path: Path) -> bool:
    """Tell by its name whether a file holds the detections of one class."""
    return _NAME.fullmatch(path.name) is not None


def read_voc_results(folder: Path, dataset: Dataset) -> ResultRows:
    """Read `compN_det_SPLIT_CLASS.txt` of every class, in the order of the data set's classes.

    The class may be spelled as `detector.classes` allows. A class without file has no detections; files of other
    classes are ignored, and so are images that the data set lacks; all three are logged.

    Raises ValueError, one sentence that names the file and the line, for a malformed line, a name of several images
    of the data set, no file or no image that fits, several files for one class, and several competitions or splits.
    """
    files = _class_files(folder, dataset.class_names)
    index = _image_index(dataset)
    names: list[str] = []
    parts = []
    for label, path in sorted(files.items()):
        images, mine, numbers = _read_class(path, index)
        boxes = numbers[:, 1:] - [1, 1, 0, 0]
        parts.append(ResultRows(images, np.full(len(images), label), boxes, numbers[:, 0]))
        names += mine
    rows = join_rows(parts)
    check_images(rows.images, names, folder)
    return rows


def write_voc_results(
    detections: Sequence[Detections], dataset: Dataset, folder: Path, competition: str = "comp3", split: str = "test"
) -> None:
    """Write one file for each class, also for those without detections; all are in place, or none is touched.

    Numbers have as many digits as `read_voc_results` needs to give the same boxes and scores (see above). Lines are in
    the order of the images, or in that of the file which the detections were read from (`Detections.order`).

    Raises ValueError if the detections do not fit the data set, if two images have the same name or one cannot stand
    in a line, and for a competition, a split or a class that cannot be part of a file name.
    """
    rows = from_detections(detections, dataset)
    targets = _targets(dataset.class_names, folder, competition, split)
    names = [sample.path.stem for sample in dataset]
    index = _image_index(dataset)
    for image in np.unique(rows.images).tolist():
        if index[names[image]] == _AMBIGUOUS:
            raise ValueError(f"expected a file name of its own for every image, got {names[image]!r} for several")
        if names[image].split() != names[image].split(" ") or not names[image].isprintable():
            raise ValueError(f"expected file names that fit into a line of VOC results, got {names[image]!r}")
    low = one_based(rows.boxes[:, :2], rows.boxes[:, 2:])
    numbers = np.concatenate([rows.scores[:, None], low, rows.boxes[:, 2:]], axis=1)
    with ExitStack() as stack:
        for label, target in enumerate(targets):
            mine = np.flatnonzero(rows.labels == label)
            lines = (
                f"{names[image]} {' '.join(map(_decimal, row))}\n"
                for image, row in zip(rows.images[mine].tolist(), numbers[mine].tolist(), strict=True)
            )
            stack.enter_context(replacing(target)).write_text("".join(lines), encoding="utf-8", newline="\n")


def one_based(low: Array, high: Array) -> Array:
    """Return the xmin of each x1 of [x1, x2): the number with xmin - 1 == x1 in float64, of at most 6 decimals if any.

    low, high: float64 of one shape, low <= high. Where no number does, the nearest, so that xmin - 1 <= x2 still holds.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # coordinates near the largest number have no decimals
        plain = low + 1
        rounded = np.round(plain, 6)
        near = np.abs(rounded - plain) <= 4 * np.spacing(np.abs(plain))
        exact = [rounded - 1 == low, plain - 1 == low, near]
        chosen = np.select(exact, [rounded, plain, rounded], plain)
        chosen = np.where(chosen - 1 > high, plain, chosen)
        return np.where(chosen - 1 > high, np.nextafter(chosen, -np.inf), chosen)


def _decimal(value: float) -> str:
    """Return the shortest text that float() turns into the same number, as a plain decimal down to 0.000001."""
    text = repr(value)
    return f"{Decimal(text):f}" if "e-" in text and abs(value) >= 1e-6 else text


def _targets(class_names: Sequence[str], folder: Path, competition: str, split: str) -> list[Path]:
    """Return the file of every class; raise ValueError for one that could not be told from its name or written."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder for VOC results, got a file")
    targets = []
    for label, name in enumerate(class_names):
        file = f"{competition}_det_{split}_{name}.txt"
        match = _NAME.fullmatch(file)
        plain = file.isprintable() and not set(file) & set('/\\:*?"<>|')
        if not plain or not match or _parts(match[2], class_names) != (split, label) or match[1] != competition:
            raise ValueError(f"expected parts of a file name like {_PATTERN}, got {competition!r}, {split!r}, {name!r}")
        if (folder / file).is_dir():
            raise ValueError(f"{folder / file}: expected a file to write to, got a folder")
        targets.append(folder / file)
    return targets


def _parts(rest: str, class_names: Sequence[str]) -> tuple[str, int] | None:
    """Cut SPLIT_CLASS where a class begins; return the split and the label, None if it is of no class."""
    for cut in (match.start() for match in re.finditer("_", rest)):
        label = match_classes([rest[cut + 1 :]], class_names).get(rest[cut + 1 :])
        if label is not None:
            return rest[:cut], label
    return None


def _class_files(folder: Path, class_names: Sequence[str]) -> dict[int, Path]:
    """Return the file of each label that has one, and log what is missing or too much."""
    matches = {path: match for path in sorted(folder.iterdir()) if (match := _NAME.fullmatch(path.name))}
    if not matches:
        raise ValueError(f"{folder}: expected VOC results such as {_PATTERN}, got a folder without any")
    parts = {path: _parts(match[2], class_names) for path, match in matches.items()}
    splits = {part[0] for part in parts.values() if part is not None}
    kinds, files, others = set(), dict[int, Path](), []
    for path, match in matches.items():
        part = parts[path]
        own = next((split for split in sorted(splits) if match[2].startswith(f"{split}_")), match[2].partition("_")[0])
        kinds.add(f"{match[1]}_det_{part[0] if part else own}")
        if part is None:
            others.append(path.name)
        elif part[1] in files:
            raise ValueError(f"{path}: expected one file for each class, got {files[part[1]].name} for the same one")
        else:
            files[part[1]] = path
    if len(kinds) > 1:
        raise ValueError(f"{folder}: expected results of one competition and split, got {', '.join(sorted(kinds))}")
    if not files:
        wanted = ", ".join(class_names)
        raise ValueError(f"{folder}: expected VOC results of the classes {wanted:.200}, got {', '.join(others):.200}")
    if others:
        _log.warning("%s: files of classes that the data set lacks are ignored: %s", folder, ", ".join(others))
    if lacking := [name for label, name in enumerate(class_names) if label not in files]:
        _log.warning("%s: no file, so no detections, for the classes %s", folder, ", ".join(lacking))
    return files


def _image_index(dataset: Dataset) -> dict[str, int]:
    """Return the index of every image name, _AMBIGUOUS for a name that several images share."""
    index: dict[str, int] = {}
    for number, sample in enumerate(dataset):
        index[sample.path.stem] = _AMBIGUOUS if sample.path.stem in index else number
    return index


def _read_class(path: Path, index: dict[str, int]) -> tuple[Array, list[str], Array]:
    """Return the (N,) indices of the images, -1 for unknown ones, their names and the (N, 5) numbers of a file."""
    lines = _lines(path)
    # from the right: an image name may have spaces
    cells = [cell for line in lines if (cell := line.strip().rsplit(None, len(_FIELDS)))]
    texts = list(chain.from_iterable(cell[1:] for cell in cells))
    joined = "".join(texts)
    names = [cell[0] for cell in cells]
    images = np.array([index.get(name, -1) for name in names], dtype=np.int64)
    sound = all(len(cell) == 1 + len(_FIELDS) for cell in cells) and joined.isascii() and "_" not in joined
    try:
        numbers = np.array(list(map(float, texts))).reshape(-1, len(_FIELDS)) if sound else np.empty((0, 5))
    except ValueError:
        sound, numbers = False, np.empty((0, 5))
    sound = sound and bool(np.isfinite(numbers).all()) and bool((numbers[:, 1:3] - 1 <= numbers[:, 3:]).all())
    spaced = any(" " in name or len(name.split()) > 1 for name, image in zip(names, images, strict=True) if image < 0)
    if not sound or spaced or (images == _AMBIGUOUS).any():
        _refuse(path, lines, index)
    return images, names, numbers


def _lines(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: expected UTF-8 text, got the byte {content[error.start]:#x}") from error
    except OSError as error:
        raise ValueError(f"{path}: expected a file of VOC results, got {error.strerror}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _refuse(path: Path, lines: list[str], index: dict[str, int]) -> None:
    """Raise ValueError for the first line that is not as it should be."""
    for number, line in enumerate(lines, 1):
        if line.strip() and (fault := _line_fault(line, index)):
            raise ValueError(f"{path}, line {number}: {fault}")


def _line_fault(line: str, index: dict[str, int]) -> str:
    """Say what is wrong with a line, if something is."""
    name, *texts = line.strip().rsplit(None, len(_FIELDS))
    count = len(line.split())
    if len(texts) < len(_FIELDS) or (name not in index and count > 1 + len(_FIELDS)):
        return f"expected 6 fields, image {' '.join(_FIELDS)}, got {count}: {shown(line.strip())}"
    if index.get(name) == _AMBIGUOUS:
        return f"expected the name of one image, got {shown(name)}, which several images of the data set have"
    values = {}
    for field, text in zip(_FIELDS, texts, strict=True):
        try:
            values[field] = float(text) if text.isascii() and "_" not in text else np.nan
        except ValueError:
            values[field] = np.nan
        if not np.isfinite(values[field]):
            return f"expected a finite number as {field}, got {shown(text)}"
    for low, high in (("xmin", "xmax"), ("ymin", "ymax")):
        if values[low] - 1 > values[high]:
            return f"expected {low} <= {high}, got {low} {values[low]!r} and {high} {values[high]!r}"
    return ""
