"""Let numba's kernels use as many threads as torch does."""

from __future__ import annotations

import numba
import torch


def use_threads_of_torch() -> None:
    """Let numba use as many threads as torch; where both share OpenMP, numba would change torch's number otherwise."""
    numba.set_num_threads(min(torch.get_num_threads(), int(getattr(numba.config, "NUMBA_NUM_THREADS", 1))))
