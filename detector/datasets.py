"""Open annotated photographs: VOC trees and COCO files become one list of (image path, GroundTruth).

A data set is named `voc:ROOT:SPLIT` (ROOT holds JPEGImages, Annotations and ImageSets/Main/SPLIT.txt) or
`coco:JSON:IMAGES`. Several are joined by class name; see `detector.classes` for the names that count as the same.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import ExifTags, Image

from .annotations import Annotation, read_coco_and_categories, read_voc
from .classes import match_classes, spellings
from .structures import GroundTruth, Size

SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
logger = logging.getLogger(__name__)


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

    dropped: how many boxes without area were left out. ignored: how many objects of other classes were left out.
    category_ids: per class the id of its category if all is from one COCO file that lists exactly one category for each
    class and gives every image an id of its own; else None.
    """

    samples: tuple[Sample, ...]
    class_names: tuple[str, ...]
    dropped: int = 0
    ignored: int = 0
    category_ids: tuple[int, ...] | None = None

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


@dataclass(frozen=True, slots=True)
class _Record:
    image_id: str
    path: Path
    annotation: Annotation


def open_dataset(spec: str, class_names: Sequence[str] | None = None) -> Dataset:
    """Open `voc:ROOT:SPLIT` or `coco:JSON:IMAGES`; see `open_datasets`."""
    return open_datasets([spec], class_names)


def open_datasets(specs: Sequence[str], class_names: Sequence[str] | None = None) -> Dataset:
    """Open several data sets as one list of images, joined by class name.

    With `class_names`, these are the classes, in this order and spelling, and all other objects are ignored. Without,
    they are the sorted names of all objects found: VOC's name where COCO's means the same class, the file's own
    spelling for a class that neither knows. Classes that a file lists but no object has are left out, since nothing
    can be learned of them. Images without objects stay. Boxes are clipped to the image.

    Raises FileNotFoundError or ValueError, one sentence that names the file, if a split, annotation or image is
    missing or damaged, if an image occurs in two of the data sets, or if no object of any class is found.
    """
    parts = [_read(spec) for spec in specs]
    records = [record for part, _ in parts for record in part]
    seen: set[Path] = set()
    for record in records:
        if record.path in seen:
            raise ValueError(f"{record.path}: expected every image in one of the data sets only, got it twice")
        seen.add(record.path)
    found = {item.name for record in records for item in record.annotation.objects}
    names = spellings(found) if class_names is None else tuple(class_names)
    labels = match_classes(found, names)
    if not labels:
        wanted = f"objects of the classes {', '.join(names)}" if found and names else "at least one annotated object"
        got = f"only {', '.join(sorted(found))}" if found and names else "none"
        raise ValueError(f"{' '.join(specs) or 'no data set'}: expected {wanted}, got {got}")
    dataset = _dataset(records, names, labels)
    return replace(dataset, category_ids=_category_ids(records, parts[0][1], names)) if len(parts) == 1 else dataset


def _dataset(records: list[_Record], names: tuple[str, ...], labels: dict[str, int]) -> Dataset:
    """Turn records into samples, with unique ids."""
    samples = []
    dropped = ignored = 0
    holders = Counter(record.image_id.casefold() for record in records)
    for record in records:
        truth, clipped_away = _truth(record, labels)
        shared = holders[record.image_id.casefold()] > 1
        image_id = f"{record.image_id}-{_digits(record.path)}" if shared else record.image_id
        samples.append(Sample(image_id, record.path, truth, record.annotation.source_id))
        dropped += record.annotation.dropped + clipped_away
        ignored += sum(item.name not in labels for item in record.annotation.objects)
    return Dataset(tuple(samples), names, dropped, ignored)


def _category_ids(
    records: list[_Record], categories: dict[int | str, str], names: tuple[str, ...]
) -> tuple[int, ...] | None:
    """Return the id of every class in one file, or None if the file's ids cannot stand for its images and classes."""
    images = [record.annotation.source_id for record in records]
    if len(set(images)) < len(images) or not all(isinstance(image, int | str) for image in images):
        return None
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


def _truth(record: _Record, labels: dict[str, int]) -> tuple[GroundTruth, int]:
    """Return the objects of wanted classes, clipped to the image, and how many lay outside of it."""
    size = record.annotation.size or _header_size(record.path)
    objects = [item for item in record.annotation.objects if item.name in labels]
    height, width = size
    edges = torch.tensor([width, height, width, height], dtype=torch.float64)
    boxes = torch.tensor([item.box for item in objects], dtype=torch.float64).reshape(-1, 4)
    boxes = boxes.clamp(min=0).minimum(edges).float()
    inside = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    if not inside.all():
        logger.warning("%s: left out %d boxes outside of the image", record.path, int((~inside).sum()))
    numbers = torch.tensor([labels[item.name] for item in objects], dtype=torch.int64)
    difficult = torch.tensor([item.difficult for item in objects], dtype=torch.bool)
    return GroundTruth(boxes[inside], numbers[inside], difficult[inside], size), int((~inside).sum())


def _header_size(path: Path) -> Size:
    """Return (height, width) of the upright image without decoding its pixels."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            return (image.width, image.height) if turned else (image.height, image.width)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: expected an image, got a file that is none or is damaged") from error


def _read(spec: str) -> tuple[list[_Record], dict[int | str, str]]:
    """Read one data set by its name; return also {category id: name}, which is empty for VOC."""
    kind, _, rest = spec.partition(":")
    left, _, right = rest.rpartition(":")
    if kind not in ("voc", "coco") or not left or not right:
        raise ValueError(f"{spec}: expected voc:ROOT:SPLIT or coco:JSON:IMAGES")
    if kind == "voc":
        return _read_voc(Path(left), right), {}
    # A path may itself contain colons (C:\...): cut where the left side is a file, else after the first ".json".
    cuts = [match.start() for match in re.finditer(":", rest)]
    files = [cut for cut in cuts if Path(rest[:cut]).is_file()]
    guesses = [cut for cut in cuts if rest[:cut].lower().endswith(".json")]
    cut = (files or guesses or [len(left)])[0]
    return _read_coco(Path(rest[:cut]), Path(rest[cut + 1 :]))


def _read_voc(root: Path, split: str) -> list[_Record]:
    for folder in ("JPEGImages", "Annotations"):
        if not (root / folder).is_dir():
            raise FileNotFoundError(f"{root / folder}: expected the folder of a VOC tree, got no such folder")
    prefix, images = _safe(root.resolve().name), (root / "JPEGImages").resolve()
    records = []
    for name in _split_ids(root, split):
        annotation = read_voc(root / "Annotations" / f"{name}.xml")
        paths = [images / f"{name}{suffix}" for suffix in SUFFIXES]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise FileNotFoundError(f"{paths[0]}: expected an image (.jpg, .jpeg or .png), got no such file")
        records.append(_Record(f"{prefix}_{_safe(name)}", path, annotation))
    return records


def _split_ids(root: Path, split: str) -> list[str]:
    """Return the image names of a split; of VOC's splits of one class (`000012 -1`), those that hold the class."""
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        others = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt"))[:12]) or "none"
        raise FileNotFoundError(f"{path}: expected the list of a split's images; the splits here: {others}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a text file with one image name per line, got other bytes") from error
    flagged = [re.fullmatch(r"(\S+) (-1| 0| 1)", line.rstrip()) for line in lines]
    names = [
        match[1] if match else line.strip()
        for line, match in zip(lines, flagged, strict=True)
        if line.strip() and (match is None or match[2] != "-1")
    ]
    if not names:
        raise ValueError(f"{path}: expected one image name per line, got none")
    if len(set(names)) < len(names):
        logger.warning("%s: %d images are listed more than once", path, len(names) - len(set(names)))
    return list(dict.fromkeys(names))


def _read_coco(path: Path, folder: Path) -> tuple[list[_Record], dict[int | str, str]]:
    annotations, categories = read_coco_and_categories(path)
    if not annotations:
        raise ValueError(f"{path}: expected at least one image, got none")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected the folder with the images of {path}, got no such folder")
    folder = folder.resolve()
    prefix = _safe(folder.name)
    records = []
    for annotation in annotations:
        image = folder / annotation.file
        if not image.is_file():
            raise FileNotFoundError(f"{image}: expected an image that {path} lists, got no such file")
        name = _safe(str(Path(annotation.file).with_suffix("")))
        records.append(_Record(f"{prefix}_{name}", image, annotation))
    return records, categories


def _digits(path: Path) -> str:
    """Return 8 hexadecimal digits that stand for a path, whatever the order in which data sets are named."""
    return hashlib.sha256(path.as_posix().encode()).hexdigest()[:8]


def _safe(name: str) -> str:
    """Return a name with letters, digits, dot, hyphen and underscore only, and no dot in front."""
    return re.sub(r"[^\w.-]", "_", name).lstrip(".") or "_"
