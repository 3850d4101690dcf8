"""Open annotated photographs: VOC trees and COCO files become one list of (image path, GroundTruth).

A data set is named `voc:ROOT:SPLIT` (ROOT holds JPEGImages, Annotations and ImageSets/Main/SPLIT.txt) or
`coco:JSON:IMAGES`. Several are joined by class name; see `detector.classes` for the names that count as the same.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .annotations import AnnotatedObject
from .classes import match_classes, spellings
from .findings import Ledger
from .structures import GroundTruth
from .trees import Record, Tree, read_tree


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Hold one annotated image.

    image_id: folder and file name, e.g. `VOC2007_000012`; unique in its data set and safe as a file name. Where several
    images would share it, each has some digits of a hash of its path behind it. source_id: the image's id in its COCO
    file, None in VOC.
    """

    image_id: str
    path: Path
    truth: GroundTruth
    source_id: int | str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Hold annotated images and the names of their K classes; `sample.truth.labels` are in [0, K).

    dropped: how many boxes of no area, or outside of their image, were left out. ignored: how many objects of other
    classes were left out.
    category_ids: per class the id of its category if all is from one COCO file that lists exactly one category for each
    class; else None. coco_file: the COCO file if all is from a single one, else None.
    """

    samples: tuple[Sample, ...]
    class_names: tuple[str, ...]
    dropped: int = 0
    ignored: int = 0
    category_ids: tuple[int, ...] | None = None
    coco_file: Path | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @property
    def truths(self) -> tuple[GroundTruth, ...]:
        """Return the objects of every image, as the evaluators take them."""
        return tuple(sample.truth for sample in self.samples)

    def subset(self, indices: Iterable[int]) -> Dataset:
        """Return the samples with these indices, in this order, with the same classes."""
        return replace(self, samples=tuple(self.samples[i] for i in indices))


def open_dataset(spec: str, class_names: Sequence[str] | None = None) -> Dataset:
    """Open `voc:ROOT:SPLIT` or `coco:JSON:IMAGES`; see `open_datasets`."""
    return open_datasets([spec], class_names)


def open_datasets(
    specs: Sequence[str], class_names: Sequence[str] | None = None, exact: bool = False, photos: bool = True
) -> Dataset:
    """Open several data sets as one list of images, joined by class name.

    With `class_names`, these are the classes, in this order and spelling, and all other objects are ignored. Without,
    they are the sorted names of all objects found: VOC's name where COCO's means the same class, the file's own
    spelling for a class that neither knows. Classes that a file lists but no object has are left out, since nothing
    can be learned of them. Images without objects stay.

    Boxes are float32 and clipped to the image, whose file, not the annotation, says how large it is. With `exact`, they
    are float64 as their file gives them and may reach out of the image or lie outside of it, as the official tools of
    VOC and COCO take them. Boxes of no area are always left out. Without `photos` the image files need not be there:
    detections can be measured without. All that is repaired is logged, a line for each kind of finding
    (`detector.findings.KINDS`).

    Raises FileNotFoundError or ValueError, one sentence that names the file, for the first finding that is refused:
    a file that is missing or damaged, an id or an image that occurs twice, no object of any class.
    """
    ledger = Ledger(strict=True, photos=photos)
    dataset = join_trees(specs, [read_tree(spec, ledger) for spec in specs], class_names, exact, ledger)
    ledger.log()
    return dataset


def join_trees(
    specs: Sequence[str], trees: Sequence[Tree], class_names: Sequence[str] | None, exact: bool, ledger: Ledger
) -> Dataset:
    """Join data sets that were read as `open_datasets` says; specs are their names."""
    records = [record for tree in trees for record in tree.records]
    seen: set[Path] = set()
    for record in records:
        if record.path in seen:
            text = "expected every image in one of the data sets only, got it twice"
            ledger.add("repeated-image", record.path, text)
        seen.add(record.path)
    found = {item.name for record in records for item in record.annotation.objects}
    names = spellings(found) if class_names is None else tuple(class_names)
    labels = match_classes(found, names)
    if not labels and not ledger.refused:  # else the objects may be in what could not be read
        wanted = f"objects of the classes {', '.join(names)}" if found and names else "at least one annotated object"
        got = f"only {', '.join(sorted(found))}" if found and names else "none"
        ledger.add("no-objects", " ".join(specs) or "no data set", f"expected {wanted}, got {got}")
    ignored = _report_unknown(records, labels, ledger)
    samples, dropped = _samples(records, labels, exact, ledger)
    dataset = Dataset(samples, names, dropped, ignored)
    if len(trees) != 1 or trees[0].categories is None:
        return dataset
    ids = _category_ids(trees[0].categories, names)
    return replace(dataset, category_ids=ids, coco_file=trees[0].file)


def _report_unknown(records: Sequence[Record], labels: dict[str, int], ledger: Ledger) -> int:
    """Report the classes that are not wanted, each once with the number of its objects; return that of all."""
    counts: Counter[str] = Counter()
    sources: dict[str, Path] = {}
    for record in records:
        for item in record.annotation.objects:
            if item.name not in labels:
                counts[item.name] += 1
                sources.setdefault(item.name, record.source)
    for name, count in counts.items() if labels else ():
        text = f"expected objects of the wanted classes, got {count} of the class {name}"
        ledger.add("unknown-class", sources[name], text, count=count)
    return counts.total()


def _samples(
    records: Sequence[Record], labels: dict[str, int], exact: bool, ledger: Ledger
) -> tuple[tuple[Sample, ...], int]:
    """Turn records into samples, with unique ids; return also how many boxes were left out."""
    samples, dropped = [], 0
    holders = Counter(record.image_id.casefold() for record in records)
    for record in records:
        dropped += record.annotation.dropped
        if record.size is None:  # the ledger knows of it
            continue
        objects = [item for item in record.annotation.objects if item.name in labels]
        truth = _truth(record, objects, labels, exact, ledger)
        dropped += len(objects) - len(truth)
        shared = holders[record.image_id.casefold()] > 1
        image_id = f"{record.image_id}-{_digits(record.path)}" if shared else record.image_id
        samples.append(Sample(image_id, record.path, truth, record.annotation.source_id))
    return tuple(samples), dropped


def _category_ids(categories: dict[int | str, str], names: tuple[str, ...]) -> tuple[int, ...] | None:
    """Return the id of every class in one file, or None if the file's ids cannot stand for the classes."""
    labels = match_classes(categories.values(), names)
    ids: dict[int, int] = {}
    for category, name in categories.items():
        label = labels.get(name)
        if label is None:
            continue
        if label in ids or not isinstance(category, int):  # two categories mean one class: neither id is right
            return None
        ids[label] = category
    return tuple(ids[label] for label in range(len(names))) if len(ids) == len(names) else None


def _truth(
    record: Record, objects: list[AnnotatedObject], labels: dict[str, int], exact: bool, ledger: Ledger
) -> GroundTruth:
    """Return the objects of wanted classes; unless exact, clipped to the image and without those outside of it."""
    assert record.size is not None
    given = torch.tensor([item.box for item in objects], dtype=torch.float64).reshape(-1, 4)
    numbers = torch.tensor([labels[item.name] for item in objects], dtype=torch.int64)
    difficult = torch.tensor([item.difficult for item in objects], dtype=torch.bool)
    if exact:
        return GroundTruth(given, numbers, difficult, record.size)
    height, width = record.size
    edges = torch.tensor([width, height, width, height], dtype=torch.float64)
    clipped = given.clamp(min=0).minimum(edges)
    boxes = clipped.float()
    kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    for index in ((clipped != given).any(dim=1) | ~kept).nonzero().flatten().tolist():
        whole = bool((clipped[index, 2:] > clipped[index, :2]).all())
        kind = "partly-outside" if kept[index] else "no-area" if whole else "outside"
        _report_box(record, objects[index], kind, ledger)
    return GroundTruth(boxes[kept], numbers[kept], difficult[kept], record.size)


def _report_box(record: Record, item: AnnotatedObject, kind: str, ledger: Ledger) -> None:
    """Report a box that is not as it should be, in the pixels of this package."""
    assert record.size is not None
    height, width = record.size
    corners = ", ".join(f"{value:.6g}" for value in item.box)
    place = "a size that float32 can tell from none" if kind == "no-area" else f"0 to {width} and 0 to {height}"
    what = "annotation" if record.annotation.file else "object"
    number = "" if item.number is None else f" {item.number!r:.40}"
    image = f" of {record.annotation.file}" if record.annotation.file else ""
    ledger.add(kind, record.source, f"expected a box in {place}, got {corners}", f"{what}{number}, {item.name}{image}")


def _digits(path: Path) -> str:
    """Return 8 hexadecimal digits that stand for a path, whatever the order in which data sets are named."""
    return hashlib.sha256(path.as_posix().encode()).hexdigest()[:8]
