"""Tell whether numba has compiled kernels already, and how many cores they may run on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def compiled(kernels: Iterable[Any]) -> bool:
    """Tell whether all kernels lie on disk, compiled, newer than their sources.

    kernels: functions under `numba.njit(cache=True)`.
    """
    for kernel in kernels:
        source = Path(kernel.py_func.__code__.co_filename)
        files = Path(kernel.stats.cache_path).glob(f"{source.stem}.{kernel.__name__}-*.nbi")
        if not any(file.stat().st_mtime >= source.stat().st_mtime for file in files):
            return False
    return True


def usable_cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
