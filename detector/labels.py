"""Open photographs whose classes are known as a whole, to train and measure classification.

A data set is named `folder:ROOT` (ROOT/CLASS/**/IMAGE), `voc:ROOT:SPLIT` (VOC's lists of one class, or a plain list and
the objects in the XML), `csv:FILE` (columns `path` and `label`) or `coco:JSON:IMAGES`. Several are joined by class
name; see `detector.classes` for the names that count as the same.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .classes import match_classes, spellings
from .findings import Ledger
from .label_files import LabelRecord, LabelTree, read_class_lists, read_csv, read_folder
from .trees import read_tree, safe_name

_NAMES = "folder:ROOT, voc:ROOT:SPLIT, csv:FILE or coco:JSON:IMAGES"


@dataclass(frozen=True, slots=True, eq=False)
class LabelledImage:
    """Hold one image and what it shows.

    image_id: folder and file name, e.g. `VOC2007_000012`; unique in its data set and safe as a file name. Where several
    images would share it, each has some digits of a hash of its path behind it. labels: (K,) int8, 1 for a class that
    is shown, -1 for one that is not, 0 for one that is left out: only difficult objects of it, or nothing known.
    """

    image_id: str
    path: Path
    labels: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LabelSet:
    """Hold images and the names of the K classes of their labels.

    multi_label: whether an image may show no class or several; if not, each has exactly one.
    """

    samples: tuple[LabelledImage, ...]
    class_names: tuple[str, ...]
    multi_label: bool

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> LabelledImage:
        return self.samples[index]

    def __iter__(self) -> Iterator[LabelledImage]:
        return iter(self.samples)

    @property
    def matrix(self) -> Tensor:
        """Return the labels of all images, (N, K) int8: 1, 0 or -1."""
        if not self.samples:
            return torch.empty((0, len(self.class_names)), dtype=torch.int8)
        return torch.stack([sample.labels for sample in self.samples])

    @property
    def single(self) -> Tensor:
        """Return the class of every image, (N,) int64 in [0, K); raises ValueError if the set is multi-label."""
        if self.multi_label:
            raise ValueError("expected images of exactly one class each, got a multi-label data set")
        return (self.matrix == 1).int().argmax(dim=1) if self.samples else torch.empty(0, dtype=torch.int64)

    def subset(self, indices: Iterable[int]) -> LabelSet:
        """Return the samples with these indices, in this order, with the same classes."""
        return replace(self, samples=tuple(self.samples[i] for i in indices))


def open_labels(specs: Sequence[str], class_names: Sequence[str] | None = None) -> LabelSet:
    """Open several data sets as one list of labelled images, joined by class name.

    With `class_names`, these are the classes, in this order and spelling: other classes are ignored, and images of
    exactly one class are left out if it is another. Without, they are the sorted names of all classes found. A single
    folder or CSV keeps its own spelling; else VOC's name stands where COCO's means the same class. A class that a
    data set names must then have an image (COCO lists many that have none: those are left out).

    The set is multi-label if one of the data sets is: those of VOC and COCO, a CSV file where an image has no class or
    several. In XML and COCO a class is 1 if an object of it is neither difficult nor a crowd, 0 if all are, -1 if
    there is none; boxes of no area do not count. In VOC's lists of one class, 0 also stands for what no list says.

    Raises FileNotFoundError or ValueError, one sentence that names the file, for the first finding that is refused:
    a file that is missing or damaged, an image that occurs twice, a class without an image, no image of any class.
    """
    names = [specs] if isinstance(specs, str) else list(specs)
    ledger = Ledger(strict=True)
    trees = [_read(spec, ledger) for spec in names]
    found = {name for tree in trees for name in tree.class_names}
    joined = len(trees) > 1 or any(tree.detection for tree in trees)
    if class_names is not None or joined:
        wanted = spellings(found) if class_names is None else tuple(class_names)
        places = match_classes(found, wanted)
    else:  # classes that would count as one elsewhere stay apart, as the user has them
        wanted = tuple(sorted(found))
        places = {name: place for place, name in enumerate(wanted)}
    _check_paths(trees, ledger)
    names_shown = {name for tree in trees for name in _shown(tree)}
    shown = {places[name] for name in names_shown if name in places}
    if class_names is None:
        _check_classes(trees, {name for name in found if places[name] not in shown}, ledger)
    if not shown:
        what = f"images of the classes {', '.join(wanted)}" if wanted else "at least one image with a class"
        got = f"only {', '.join(sorted(names_shown))}" if names_shown else "none"
        ledger.add("no-objects", " ".join(names) or "no data set", f"expected {what}, got {got}")
    samples = _samples(trees, places, len(wanted), ledger)
    ledger.log()
    return LabelSet(samples, wanted, any(tree.multi_label for tree in trees))


def _read(spec: str, ledger: Ledger) -> LabelTree:
    """Read one data set by its name."""
    kind, _, rest = spec.partition(":")
    if kind not in ("folder", "csv", "voc", "coco") or not rest:
        raise ValueError(f"{spec}: expected {_NAMES}")
    if kind == "folder":
        return read_folder(Path(rest), ledger)
    if kind == "csv":
        return read_csv(Path(rest), ledger)
    root, _, split = rest.rpartition(":")
    if not root or not split:
        raise ValueError(f"{spec}: expected {_NAMES}")
    lists = read_class_lists(Path(root), split, ledger) if kind == "voc" else None
    return _read_objects(spec, ledger) if lists is None else lists


def _read_objects(spec: str, ledger: Ledger) -> LabelTree:
    """Read a detection data set: an image shows what its objects are."""
    tree = read_tree(spec, ledger)
    records = []
    for record in tree.records:
        marks: dict[str, int] = {}
        for item in record.annotation.objects:
            marks[item.name] = max(marks.get(item.name, 0), int(not item.difficult))
        records.append(LabelRecord(record.image_id, record.path, record.source, marks))
    names = sorted({name for record in records for name in record.marks})
    return LabelTree(tree.file, tuple(records), tuple(names), True, detection=True)


def _shown(tree: LabelTree) -> set[str]:
    """Return the classes of which the data set has an image, if only of difficult objects."""
    return {name for record in tree.records for name, mark in record.marks.items() if mark >= 0}


def _check_classes(trees: Sequence[LabelTree], missing: set[str], ledger: Ledger) -> None:
    """Report the classes that a data set names and no image shows."""
    for tree in trees:
        names = sorted(missing & set(tree.class_names))
        if names:
            text = f"expected an image of every class, or the names of the classes, got no image of {', '.join(names)}"
            ledger.add("no-objects", tree.file, text)


def _samples(
    trees: Sequence[LabelTree], places: dict[str, int], count: int, ledger: Ledger
) -> tuple[LabelledImage, ...]:
    """Turn records into samples of `count` classes, with unique ids. places: the class of every name that is wanted."""
    kept = []
    for tree in trees:
        rows = ((record, _row(record, tree, places, count)) for record in tree.records)
        kept += [(record, row) for record, row in rows if row is not None]
        _report_unknown(tree, places, ledger)
    ids = [safe_name(record.name) for record, _ in kept]
    holders = Counter(image_id.casefold() for image_id in ids)
    # Images with the same labels share one tensor: there may be a million of them.
    tensors = {row: torch.tensor(row, dtype=torch.int8) for row in {row for _, row in kept}}
    samples = []
    for image_id, (record, row) in zip(ids, kept, strict=True):
        whole = f"{image_id}-{_digits(record.path)}" if holders[image_id.casefold()] > 1 else image_id
        samples.append(LabelledImage(whole, record.path, tensors[row]))
    return tuple(samples)


def _row(record: LabelRecord, tree: LabelTree, places: dict[str, int], count: int) -> tuple[int, ...] | None:
    """Return the labels of an image, None if it is one of exactly one class and that is not wanted."""
    known = sorted((mark, places[name]) for name, mark in record.marks.items() if name in places)
    if not known and not tree.multi_label:
        return None
    row = [tree.unstated] * count
    for mark, place in known:  # of several names that mean one class, the largest mark comes last and counts
        row[place] = mark
    return tuple(row)


def _report_unknown(tree: LabelTree, places: dict[str, int], ledger: Ledger) -> None:
    """Report the classes that are not wanted, each once with the number of its images."""
    counts = Counter(
        name for record in tree.records for name, mark in record.marks.items() if mark >= 0 and name not in places
    )
    for name, number in counts.items():
        text = f"expected images of the wanted classes, got {number} of the class {name}"
        ledger.add("unknown-class", tree.file, text, count=number)


def _check_paths(trees: Sequence[LabelTree], ledger: Ledger) -> None:
    """Report images that occur twice, by whatever way their folders are reached."""
    folders: dict[Path, str] = {}
    seen: set[tuple[str, str]] = set()
    for record in (record for tree in trees for record in tree.records):
        parent = record.path.parent
        if parent not in folders:
            folders[parent] = os.path.realpath(parent)
        key = (folders[parent], record.path.name)
        if key in seen:
            text = "expected every image in one of the data sets only, got it twice"
            ledger.add("repeated-image", record.path, text)
        seen.add(key)


def _digits(path: Path) -> str:
    """Return 8 hexadecimal digits that stand for a path, whatever the order in which data sets are named."""
    return hashlib.sha256(path.as_posix().encode()).hexdigest()[:8]
