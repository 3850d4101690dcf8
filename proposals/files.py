"""Propose boxes that lie in files: JSON, MATLAB's as selective search and R-CNN were published with, VOC annotations.

They are found by the file of the image, so such a proposer must be told its `path`. Boxes are clipped to the image;
those without area and repeats are left out, and an image for which nothing is left gets one box, the whole of it.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .given import look_up, read_boxes
from .structures import Proposals, check_image

VERSION = 1
Boxes = NDArray[np.float64]
_DAMAGED = (ValueError, TypeError, LookupError, EOFError, OSError, zlib.error, struct.error)


class JsonBoxes:
    """Propose the boxes of a JSON file, in its order; `given.read_boxes` says which formats are known.

    Raises OSError if the file cannot be read and ValueError if it is not such a file, one sentence that names it.
    """

    name = "json"

    def __init__(self, file: Path) -> None:
        self.file = Path(file)
        self._given = read_boxes(self.file)
        self._digest = _digest([self.file])

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return what shapes the boxes: the content of the file, wherever it lies."""
        return {"proposer": self.name, "version": VERSION, "content": self._digest}

    def __call__(self, image: Tensor, path: Path | None = None) -> Proposals:
        """Propose the file's boxes of the image. Raises ValueError if the file has no entry for `path`."""
        check_image(image)
        return _tidy(np.array(self._given.of(_name(path, self.file)), np.float64).reshape(-1, 4), image)


class MatlabBoxes:
    """Propose the boxes of a MATLAB file, in its order: those of Uijlings et al. and of R-CNN and Fast R-CNN.

    It holds `images`, a cell array of names, and `boxes`, a cell array with one (R, 4) array for each: y1, x1, y2, x2,
    1-based and inclusive. Raises OSError if the file cannot be read and ValueError if it is not such a file, one
    sentence that names it.
    """

    name = "mat"

    def __init__(self, file: Path) -> None:
        self.file = Path(file)
        self._boxes = read_matlab(self.file)
        self._digest = _digest([self.file])

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return what shapes the boxes: the content of the file, wherever it lies."""
        return {"proposer": self.name, "version": VERSION, "content": self._digest}

    def __call__(self, image: Tensor, path: Path | None = None) -> Proposals:
        """Propose the file's boxes of the image. Raises ValueError if the file has no entry for `path`."""
        check_image(image)
        found = look_up(self._boxes, _name(path, self.file), str(self.file))
        return _tidy(found[:, [1, 0, 3, 2]].astype(np.float64) - [1, 1, 0, 0], image)


class AnnotatedBoxes:
    """Propose the annotated objects of an image, difficult ones too: the oracle that no proposer can beat.

    root: a VOC tree; the objects of an image are in root/Annotations/STEM.xml, 1-based and inclusive. Raises ValueError
    if there is no folder Annotations.
    """

    name = "annotations"

    def __init__(self, root: Path) -> None:
        self.folder = Path(root) / "Annotations"
        if not self.folder.is_dir():
            raise ValueError(f"{root}: expected a VOC tree with a folder Annotations, got none")
        self._digest = _digest(sorted(self.folder.glob("*.xml")))

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return what shapes the boxes: names and contents of the annotations, wherever they lie."""
        return {"proposer": self.name, "version": VERSION, "content": self._digest}

    def __call__(self, image: Tensor, path: Path | None = None) -> Proposals:
        """Propose the objects of the image. Raises ValueError if there is no annotation of `path` or it is damaged."""
        check_image(image)
        file = self.folder / f"{Path(_name(path, self.folder)).stem}.xml"
        if not file.is_file():
            raise ValueError(f"{path}: expected an entry for it in {self.folder}, got none")
        return _tidy(read_objects(file), image)


def read_matlab(file: Path) -> dict[str, NDArray[Any]]:
    """Return the boxes of every image of a MATLAB file, as they are there; see `MatlabBoxes` for format and errors."""
    import scipy.io.matlab

    wanted = "expected a MATLAB file with the cell arrays images and boxes"
    opened = io.BytesIO(file.read_bytes())
    try:
        content = scipy.io.matlab.loadmat(opened, variable_names=["images", "boxes"])
    except NotImplementedError as error:
        raise ValueError(f"{file}: {wanted}, got one of version 7.3: save it with -v7") from error
    except _DAMAGED + (scipy.io.matlab.MatReadError,) as error:
        raise ValueError(f"{file}: {wanted}, got something else ({' '.join(str(error).split())})") from error
    names, boxes = content.get("images"), content.get("boxes")
    if names is None or boxes is None or names.dtype != object or boxes.dtype != object:
        raise ValueError(f"{file}: {wanted}, got none")
    if names.size != boxes.size:
        raise ValueError(f"{file}: {wanted} of one length, got {names.size} images and {boxes.size} boxes")
    found: dict[str, NDArray[Any]] = {}
    for cell, entry in zip(names.ravel(), boxes.ravel(), strict=True):
        name = str(cell.item()) if getattr(cell, "size", 0) == 1 else ""
        if not name or name in found:
            got = f"{name} twice" if name else "an empty one"
            raise ValueError(f"{file}: {wanted}, with another name for every image, got {got}")
        found[name] = _check_matlab_boxes(entry, f"{file}: {name}")
    return found


def _check_matlab_boxes(entry: Any, where: str) -> NDArray[Any]:
    shape, kind = getattr(entry, "shape", None), getattr(entry, "dtype", np.dtype(object)).kind
    if kind in "iuf" and entry.size == 0:
        return np.zeros((0, 4), np.float64)
    if kind not in "iuf" or len(entry.shape) != 2 or entry.shape[1] != 4 or not np.isfinite(entry).all():
        raise ValueError(f"{where}: expected boxes of shape (R, 4), finite numbers, got {shape} {entry.dtype}")
    return np.asarray(entry)


def read_objects(file: Path) -> Boxes:
    """Return (N, 4) boxes, xyxy, x2 and y2 exclusive, of a VOC annotation. Raises ValueError that names the file."""
    try:
        objects = ElementTree.fromstring(file.read_bytes()).findall("object")
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise ValueError(f"{file}: expected VOC XML, got a damaged or truncated file ({error})") from error
    rows = []
    for element in objects:
        texts = [element.findtext(f"bndbox/{key}", "").strip() for key in ("xmin", "ymin", "xmax", "ymax")]
        try:
            row = [float(text) for text in texts]
        except ValueError:
            row = [math.nan]
        if not all(map(math.isfinite, row)):
            got = ", ".join(map(repr, texts))
            raise ValueError(f"{file}: expected four finite numbers in every <bndbox>, got {got}")
        if row[2] > row[0] and row[3] > row[1]:
            rows.append([row[0] - 1, row[1] - 1, row[2], row[3]])
    return np.array(rows, np.float64).reshape(-1, 4)


def _name(path: Path | None, source: Path) -> str:
    if path is None:
        raise ValueError(f"{source}: expected the path of an image to find its boxes by, got none")
    return str(path)


def _tidy(boxes: Boxes, image: Tensor) -> Proposals:
    """Clip boxes to the image; keep those with area, each once, or the whole image if nothing is left."""
    height, width = int(image.shape[1]), int(image.shape[2])
    inside = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
    inside = inside[(inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1])]
    if len(inside) == 0:
        inside = np.array([[0, 0, width, height]], np.float32)
    _, first = np.unique(inside, axis=0, return_index=True)
    return Proposals(torch.from_numpy(inside[np.sort(first)]))


def _digest(files: list[Path]) -> str:
    """Return the SHA-256 of names' and contents' digests; of a single file its content's alone."""
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    if len(files) == 1:
        return digests[0]
    lines = [f"{file.name} {digest}\n" for file, digest in zip(files, digests, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
