"""Find proposers by the names that the command line and the settings use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from .structures import Proposer


def _fast() -> Proposer:
    from .fast import SelectiveSearch

    return SelectiveSearch()


def _package() -> Proposer:
    from .package import PackageSelectiveSearch

    return PackageSelectiveSearch()


def _opencv(mode: str) -> Proposer:
    from .opencv import OpenCVSelectiveSearch

    return OpenCVSelectiveSearch(mode)


def _windows() -> Proposer:
    from .windows import SlidingWindows

    return SlidingWindows()


PROPOSERS: dict[str, Callable[[], Proposer]] = {
    "fast": _fast,
    "selectivesearch": _package,
    "opencv-single": partial(_opencv, "single"),
    "opencv-fast": partial(_opencv, "fast"),
    "opencv-quality": partial(_opencv, "quality"),
    "windows": _windows,
}


def make_proposer(name: str) -> Proposer:
    """Make the proposer of this name.

    Raises ValueError if there is none, naming the known ones, or if it needs another build of OpenCV.
    """
    if name not in PROPOSERS:
        raise ValueError(f"expected a proposer named {', '.join(PROPOSERS)}, got {name!r}")
    return PROPOSERS[name]()
