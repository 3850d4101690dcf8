"""Write MATLAB files as those of selective search and R-CNN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.io


def cells(values: list[Any]) -> np.ndarray[Any, Any]:
    """Return a MATLAB cell array of one column."""
    array = np.empty((len(values), 1), object)
    for i, value in enumerate(values):
        array[i, 0] = value
    return array


def save_mat(path: Path, entries: dict[str, Any], names: str = "images", compress: bool = True) -> Path:
    content = {names: cells(list(entries)), "boxes": cells([np.asarray(value) for value in entries.values()])}
    scipy.io.savemat(path, content, do_compression=compress)
    return path
