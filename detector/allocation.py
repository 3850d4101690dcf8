"""Keep memory that was freed and kernels that were made, so that no image waits for either again and again."""

from __future__ import annotations

import ctypes
import os
import sys

_LARGEST = (1 << 31) - 1
# Parameters of glibc's mallopt, from malloc.h: what is mapped by itself, when memory is given back, and how many arenas
# there are: those of threads other than the first cannot hold more than 64 MiB in one piece. Some versions refuse the
# first; the second alone would make things slower.
_SETTINGS = {-3: _LARGEST, -1: _LARGEST, -8: 1}


def keep_freed_memory() -> bool:
    """Let glibc reuse freed memory of any size in this process instead of giving it back; tell whether it does.

    glibc maps what is larger than 32 MiB anew each time, and every page of it is cleared when it is first touched: on
    a map of 576 x 768 pixels that takes as long as the convolutions. The peak stays as it was. Elsewhere than with
    glibc nothing changes, nor for threads that ran before or share the memory of one that did. The commands call it; a
    program of your own may.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(name, value) == 1 for name, value in _SETTINGS.items())


def keep_kernels(most: int = 8192) -> None:
    """Let oneDNN keep so many kernels instead of 1,024, if the user's environment does not say how many.

    It makes one for every layer and every size of its input: five scales of one photo need 240. What falls out is made
    again, which takes about as long as to use it. Call this before the first layer runs.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(most))
