"""Read the folders of annotated photographs, as they are named: `voc:ROOT:SPLIT` and `coco:JSON:IMAGES`."""

from __future__ import annotations

import functools
import re
import struct
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image

from .annotations import UNREAD, Annotation, read_coco_and_categories, read_voc
from .findings import Ledger
from .images import MAX_PIXELS, ImageError
from .images import SUFFIXES as KNOWN_SUFFIXES
from .structures import Size

SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
_MAX_LIST_BYTES = 256 * 2**20
_PNG_START = 8  # bytes of its signature
Watch = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """Hold what is known of one image.

    image_id: folder and file name. source: the file with its annotation. size: (height, width) of the upright image,
    None if the file is missing or damaged, which only a ledger that is not strict lets through.
    """

    image_id: str
    path: Path
    source: Path
    annotation: Annotation
    size: Size | None


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """Hold one data set: the list it is read from, its images and, in COCO, {category id: name} of all it lists."""

    file: Path
    records: tuple[Record, ...]
    categories: dict[int | str, str] | None = None


def ignore_progress(done: int, total: int) -> None:
    """Do nothing after each image."""


def read_tree(spec: str, ledger: Ledger, watch: Watch = ignore_progress) -> Tree:
    """Read one data set by its name. watch: is called after each image with how many are done, and of how many.

    Raises ValueError if the name is none. What is wrong with the files goes to the ledger.
    """
    kind, _, rest = spec.partition(":")
    left, _, right = rest.rpartition(":")
    if kind not in ("voc", "coco") or not left or not right:
        raise ValueError(f"{spec}: expected voc:ROOT:SPLIT or coco:JSON:IMAGES")
    if kind == "voc":
        return _read_voc(Path(left), right, ledger, watch)
    # A path may itself contain colons (C:\...): cut where the left side is a file, else after the first ".json".
    cuts = [match.start() for match in re.finditer(":", rest)]
    files = [cut for cut in cuts if _is_file(Path(rest[:cut]))]
    guesses = [cut for cut in cuts if rest[:cut].lower().endswith(".json")]
    cut = (files or guesses or [len(left)])[0]
    return _read_coco(Path(rest[:cut]), Path(rest[cut + 1 :]), ledger, watch)


def _read_voc(root: Path, split: str, ledger: Ledger, watch: Watch) -> Tree:
    file = root / "ImageSets" / "Main" / f"{split}.txt"
    wanted = ("JPEGImages", "Annotations") if ledger.photos else ("Annotations",)
    missing = [root / folder for folder in wanted if not (root / folder).is_dir()]
    for folder in missing:
        ledger.add("missing-list", folder, "expected the folder of a VOC tree, got no such folder")
    if missing:
        return Tree(file, ())
    prefix, images = safe_name(root.resolve().name), (root / "JPEGImages").resolve()
    records = []
    names = _split_ids(file, ledger)
    for done, name in enumerate(names, 1):
        source = root / "Annotations" / f"{name}.xml"
        annotation = read_voc(source, ledger)
        paths = [images / f"{name}{suffix}" for suffix in SUFFIXES]
        path = next((path for path in paths if _is_file(path)), None)
        if path is None:
            text = "expected an image (.jpg, .jpeg or .png), got no such file"
            size = _stated_size(paths[0], text, annotation, ledger)
        else:
            size = _image_size(path, source, annotation, ledger)
        records.append(Record(f"{prefix}_{safe_name(name)}", path or paths[0], source, annotation, size))
        watch(done, len(names))
    return Tree(file, tuple(records))


def _split_ids(path: Path, ledger: Ledger) -> list[str]:
    """Return the image names of a split; of VOC's splits of one class (`000012 -1`), those that hold the class."""
    try:
        if path.stat().st_size > _MAX_LIST_BYTES:
            raise ValueError(f"one of more than {_MAX_LIST_BYTES >> 20} MiB")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        others = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt"))[:12]) or "none"
        ledger.add("missing-list", path, f"expected the list of a split's images; the splits here: {others}")
        return []
    except UnicodeDecodeError:
        ledger.add("damaged-list", path, "expected a text file with one image name per line, got other bytes")
        return []
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        ledger.add("damaged-list", path, f"expected a text file with one image name per line, got {reason}")
        return []
    flagged = [re.fullmatch(r"(\S+) (-1| 0| 1)", line.rstrip()) for line in lines]
    names = [
        match[1] if match else line.strip()
        for line, match in zip(lines, flagged, strict=True)
        if line.strip() and (match is None or match[2] != "-1")
    ]
    if not names:
        ledger.add("damaged-list", path, "expected one image name per line, got none")
    for name, times in Counter(names).items():
        if times > 1:
            ledger.add("listed-twice", path, f"expected every image once, got {name} {times} times", count=times - 1)
    return list(dict.fromkeys(names))


def _read_coco(path: Path, folder: Path, ledger: Ledger, watch: Watch) -> Tree:
    before = ledger.refused
    annotations, categories = read_coco_and_categories(path, ledger)
    if not annotations and ledger.refused == before:
        ledger.add("damaged-list", path, "expected at least one image, got none")
    if annotations and ledger.photos and not folder.is_dir():
        got = f"expected the folder with the images of {path}, got no such folder"
        ledger.add("missing-list", folder, got)
        return Tree(path, (), categories)
    folder = folder.resolve()
    prefix = safe_name(folder.name)
    records = []
    for done, annotation in enumerate(annotations, 1):
        image = folder / annotation.file
        if _is_file(image):
            size = _image_size(image, path, annotation, ledger)
        else:
            size = _stated_size(image, f"expected an image that {path} lists, got no such file", annotation, ledger)
        name = safe_name(str(Path(annotation.file).parent / Path(annotation.file).stem))
        records.append(Record(f"{prefix}_{name}", image, path, annotation, size))
        watch(done, len(annotations))
    return Tree(path, tuple(records), categories)


def _stated_size(path: Path, text: str, annotation: Annotation, ledger: Ledger) -> Size | None:
    """Report an image that is missing; where images need not be there, return what its annotation says of its size."""
    if ledger.photos:
        ledger.add("missing-image", path, text)
        return None
    return annotation.size or (1, 1)


def _image_size(path: Path, source: Path, annotation: Annotation, ledger: Ledger) -> Size | None:
    """Return the size of an image file, which counts, and report an annotation that states another or none."""
    try:
        size = header_size(path)
    except ImageError as error:
        ledger.add("damaged-image", path, str(error).removeprefix(f"{path}: "))
        return None
    stated = annotation.size
    if annotation is UNREAD:
        return size
    if stated is None:
        ledger.add("no-size", source, f"expected the width and height of {path.name}, got none")
    elif stated != size:
        turned = ": those of the image before EXIF turns it" if stated == size[::-1] else ""
        text = f"expected the size of {path.name}, width {size[1]} and height {size[0]}"
        ledger.add("other-size", source, f"{text}, got {stated[1]} and {stated[0]}{turned}")
    return size


def _is_file(path: Path) -> bool:
    """Tell whether there is such a file; a name that is too long for one is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def safe_name(name: str) -> str:
    """Return a name with letters, digits, dot, hyphen and underscore only, and no dot in front."""
    return re.sub(r"[^\w.-]", "_", name).lstrip(".") or "_"


def header_size(path: Path) -> Size:
    """Return (height, width) of the upright image, as `read_image` would give it, in a fraction of a millisecond.

    Raises ImageError, one sentence that names the file, if it is no image, its header is damaged, or it has more than
    100 megapixels. A damage behind the header is not noticed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of much less than it can read
            with Image.open(path, formats=_formats()) as image:
                height, width = image.height, image.width
                sideways = _orientation(image) in (5, 6, 7, 8)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: expected an image of at most {MAX_PIXELS / 1e6:.6g} megapixels, got more") from error
    except Exception as error:  # a decoder fed with damaged bytes may raise anything
        raise ImageError(f"{path}: expected an image, got a file that is none or is damaged") from error
    if height * width > MAX_PIXELS:
        got = f"{height * width / 1e6:.6g} megapixels"
        raise ImageError(f"{path}: expected an image of at most {MAX_PIXELS / 1e6:.6g} megapixels, got {got}")
    return (width, height) if sideways else (height, width)


@functools.cache
def _formats() -> list[str]:
    """Return the formats that `read_image` knows."""
    extensions = Image.registered_extensions()
    return list(
        dict.fromkeys(
            extensions[suffix] for suffix in sorted(KNOWN_SUFFIXES, key=".jpg".__ne__) if suffix in extensions
        )
    )


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1, which is upright, if there is none or it cannot be read."""
    if image.format in ("JPEG", "MPO") and not {"exif", "xmp"} & image.info.keys():
        return 1
    try:
        if image.format == "PNG" and not _has_late_text(image.fp):  # type: ignore[attr-defined]
            # Pillow would decode a PNG to look for metadata behind its pixels
            return int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # as when the pixels are read: damaged metadata are no reason to refuse an image
        return 1


def _has_late_text(file: BinaryIO) -> bool:
    """Tell whether a PNG has EXIF data or text behind its pixels, by the heads of its chunks."""
    place, behind = file.tell(), False
    file.seek(_PNG_START)
    try:
        while len(head := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", head)
            if behind and name in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                return True
            behind = behind or name == b"IDAT"
            file.seek(length + 4, 1)  # the chunk and its checksum
        return False
    finally:
        file.seek(place)
