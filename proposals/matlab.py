"""Read the boxes of MATLAB files as selective search and R-CNN were published with.

Such a file holds `images`, a cell array of image names, and `boxes`, a cell array with one (R, 4) array for each image.
scipy reads it, and executes nothing; since it crashes on some damaged files, their structure is checked first. That of
compressed variables is not: zlib's checksum tells whether they are damaged.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_VARIABLES = ("images", "boxes")
# numbers of the format, from MathWorks' "MAT-File Format": types of data elements and their bytes, classes of arrays
_BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8, 16: 1, 17: 2, 18: 4}
_UNICODE = (16, 17, 18)
_MATRIX, _COMPRESSED = 14, 15
_HEADERS = [[6, shape, name] for shape in (5, 6) for name in (1, 16)]  # the first as MATLAB writes, others as some do
_CELL, _CHARACTERS, _NUMBERS = 1, 4, range(6, 16)


def read_matlab(file: Path) -> dict[str, NDArray[Any]]:
    """Return the boxes of every image by its name: (R, 4), y1, x1, y2, x2, 1-based and inclusive, in the file's type.

    Raises OSError if the file cannot be read and ValueError if it is not such a file, one sentence that names it.
    """
    wanted = "expected a MATLAB file with the cell arrays images and boxes"
    read = file.read_bytes()
    try:
        content = _load(read)
    except NotImplementedError as error:
        raise ValueError(f"{file}: {wanted}, got one of version 7.3: save it with -v7") from error
    except Exception as error:  # scipy raises whatever a damaged file leads it to, UnboundLocalError for one
        raise ValueError(f"{file}: {wanted}, got something else ({' '.join(str(error).split())})") from error
    names, boxes = content.get("images"), content.get("boxes")
    if names is None or boxes is None or not (_is_cell_array(names) and _is_cell_array(boxes)):
        raise ValueError(f"{file}: {wanted}, N x 1 or 1 x N, got images {_kind(names)} and boxes {_kind(boxes)}")
    if names.size != boxes.size:
        raise ValueError(f"{file}: {wanted} of one length, got {names.size} images and {boxes.size} boxes")
    found: dict[str, NDArray[Any]] = {}
    for cell, entry in zip(names.ravel(), boxes.ravel(), strict=True):
        name = str(cell.item()) if isinstance(cell, np.ndarray) and cell.dtype.kind == "U" and cell.size == 1 else ""
        if not name or name in found:
            got = f"{name} twice" if name else _kind(cell)
            raise ValueError(f"{file}: {wanted}, with another name for every image, got {got}")
        found[name] = _check_boxes(entry, f"{file}: {name}")
    return found


def _load(content: bytes) -> dict[str, Any]:
    """Return the two variables. Raises any Exception if they cannot be read, NotImplementedError for version 7.3."""
    import scipy.io

    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None:
        raise ValueError("it does not begin like one of MATLAB 5 or later")
    if struct.unpack_from(f"{order}H", content, 124)[0] == 0x0100:
        for kind, element in _elements(memoryview(content)[128:], order):
            if kind == _MATRIX:
                _check_variable(element, order)
            elif kind != _COMPRESSED:
                raise ValueError(f"a variable is of type {kind}")
    return dict(scipy.io.loadmat(io.BytesIO(content), variable_names=list(_VARIABLES)))


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Yield type and content of each data element. Raises ValueError if one is longer than what holds it."""
    at = 0
    while at < len(data):
        if len(data) < at + 8:
            raise ValueError("it is cut off")
        kind, size = struct.unpack_from(f"{order}II", data, at)
        start, after = at + 8, at + 8 + size + (0 if kind == _COMPRESSED else -size % 8)
        if kind >> 16:  # up to 4 bytes lie in the tag itself
            kind, size, start, after = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        if start + size > min(after, len(data)):
            raise ValueError(f"{size} bytes are announced where there is no room for them")
        yield kind, data[start : start + size]
        at = after


def _check_variable(matrix: memoryview, order: str) -> None:
    """Raise ValueError if one of the two variables is damaged; others are none of our business."""
    names = [bytes(content) for _, content in _elements(matrix, order)][2:3]
    if not names or names[0].decode("latin-1") in _VARIABLES:
        _check_matrix(matrix, order)


def _check_matrix(matrix: memoryview, order: str) -> None:
    """Raise ValueError unless an array of cells, characters or numbers has the parts that its header announces."""
    if len(matrix) == 0:
        return
    elements = list(_elements(matrix, order))
    header, parts = elements[:3], elements[3:]
    kinds = [kind for kind, _ in header]  # of flags, shape and name
    if kinds not in _HEADERS or len(header[0][1]) != 8 or len(header[1][1]) % 4:
        raise ValueError("the header of an array is damaged")
    flags = struct.unpack_from(f"{order}I", header[0][1])[0]
    array_class, is_complex = flags & 0xFF, bool(flags & 0x800)
    shape = struct.unpack(f"{order}{len(header[1][1]) // 4}i", header[1][1])
    if len(shape) < 2 or min(shape) < 0:
        raise ValueError(f"an array has the shape {shape}")
    if array_class == _CELL:
        if len(parts) != math.prod(shape) or any(kind != _MATRIX for kind, _ in parts):
            raise ValueError(f"a cell array of shape {shape} has {len(parts)} cells")
        for _, content in parts:
            _check_matrix(content, order)
    elif array_class in _NUMBERS:
        expected = {(kind, math.prod(shape) * size) for kind, size in _BYTES.items() if kind not in _UNICODE}
        if len(parts) != 1 + is_complex or not {(kind, len(content)) for kind, content in parts} <= expected:
            raise ValueError(f"an array of shape {shape} has other numbers")
    elif array_class == _CHARACTERS and (len(parts) != 1 or parts[0][0] not in _BYTES):
        raise ValueError("a text is damaged")


def _check_boxes(entry: Any, where: str) -> NDArray[Any]:
    numbers = isinstance(entry, np.ndarray) and entry.dtype.kind in "iuf"
    if numbers and entry.size == 0:  # MATLAB's [] has the shape (0, 0)
        return np.zeros((0, 4), np.float64)
    if not numbers or entry.ndim != 2 or entry.shape[1] != 4:
        raise ValueError(f"{where}: expected boxes as an (R, 4) array of numbers, got {_kind(entry)}")
    if not np.isfinite(entry).all():
        raise ValueError(f"{where}: expected finite box coordinates, got NaN or infinity")
    return np.asarray(entry)


def _is_cell_array(value: Any) -> bool:
    """Tell whether a variable is a MATLAB cell array of one row or column, or an empty one."""
    return isinstance(value, np.ndarray) and value.dtype == object and value.size in (0, max(value.shape))


def _kind(value: Any) -> str:
    """Say what a MATLAB variable is: "none", "an empty one", "a (5, 1) cell array", "a (5, 4) array of float64"."""
    if value is None or not hasattr(value, "shape"):
        return "none" if value is None else f"a {type(value).__name__}"
    if 0 in value.shape:
        return "an empty one"
    kinds = {"O": "cell array", "U": "text", "V": "struct"}
    return f"a {value.shape} {kinds.get(value.dtype.kind, f'array of {value.dtype}')}"
