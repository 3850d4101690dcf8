"""Propose boxes that lie in files: JSON, MATLAB's as selective search and R-CNN were published with, VOC annotations.

They are found by the file of the image, so such a proposer must be told its `path`. Boxes are clipped to the image;
those without area and repeats are left out, and an image for which nothing is left gets one box, the whole of it.
"""

from __future__ import annotations

import hashlib
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .given import look_up, read_boxes
from .matlab import read_matlab
from .structures import Proposals, check_image

VERSION = 1
Boxes = NDArray[np.float64]


class _BoxFile:
    """Hold what proposers have in common that read one file: it must be there, and its content shapes the boxes."""

    name: str

    def __init__(self, file: Path) -> None:
        if not Path(file).is_file():
            got = "a folder" if Path(file).is_dir() else "no such file"
            raise FileNotFoundError(f"{file}: expected a file of boxes, got {got}")
        self.file = Path(file)
        self._digest = hashlib.sha256(self.file.read_bytes()).hexdigest()

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return what shapes the boxes: the content of the file, wherever it lies."""
        return {"proposer": self.name, "version": VERSION, "content": self._digest}


class JsonBoxes(_BoxFile):
    """Propose the boxes of a JSON file, in its order; `given.read_boxes` says which formats are known.

    Raises OSError if the file cannot be read and ValueError if it is not such a file, one sentence that names it.
    """

    name = "json"

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self._given = read_boxes(self.file)

    def __call__(self, image: Tensor, path: Path | None = None) -> Proposals:
        """Propose the file's boxes of the image. Raises ValueError if the file has no entry for `path`."""
        check_image(image)
        return _tidy(np.array(self._given.of(_name(path, self.file)), np.float64).reshape(-1, 4), image)


class MatlabBoxes(_BoxFile):
    """Propose the boxes of a MATLAB file, in its order: those of Uijlings et al. and of R-CNN and Fast R-CNN.

    `matlab.read_matlab` says what such a file holds. Raises OSError if it cannot be read and ValueError if it is not
    such a file, one sentence that names it.
    """

    name = "mat"

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self._boxes = read_matlab(self.file)

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

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return what shapes the boxes: names and contents of the annotations, wherever they lie."""
        return {"proposer": self.name, "version": VERSION, "content": self._digest}

    @cached_property
    def _digest(self) -> str:
        """Hash all annotations when that is first asked for: VOC2012 has 17,125 of them."""
        files = sorted(self.folder.glob("*.xml"))
        lines = [f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n" for file in files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def __call__(self, image: Tensor, path: Path | None = None) -> Proposals:
        """Propose the objects of the image. Raises ValueError if there is no annotation of `path` or it is damaged."""
        check_image(image)
        file = self.folder / f"{Path(_name(path, self.folder)).stem}.xml"
        if not file.is_file():
            raise ValueError(f"{path}: expected an entry for it in {self.folder}, got none")
        return _tidy(read_objects(file), image)


def read_objects(file: Path) -> Boxes:
    """Return (N, 4) boxes, xyxy, x2 and y2 exclusive, of a VOC annotation. Raises ValueError that names the file."""
    try:
        root = ElementTree.fromstring(file.read_bytes())
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise ValueError(f"{file}: expected VOC XML, got a damaged or truncated file ({error})") from error
    if root.tag != "annotation":
        raise ValueError(f"{file}: expected VOC XML with the root <annotation>, got <{root.tag}>")
    rows = []
    for element in root.iterfind("object"):
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
