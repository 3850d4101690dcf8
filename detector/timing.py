"""Measure how long each stage of a prediction takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .structures import Seconds


@contextmanager
def measure(seconds: Seconds | None, stage: str, device: torch.device | str = "cpu") -> Iterator[None]:
    """Add the wall-clock seconds of the block to `stage`, also if the block raises; do nothing if `seconds` is None.

    Work on a CUDA device is waited for before and after the block, so that each stage pays for its own kernels.
    """
    if seconds is None:
        yield
        return
    _wait(device)
    start = time.perf_counter()
    try:
        yield
    finally:
        _wait(device)
        seconds.add(stage, time.perf_counter() - start)


def _wait(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
