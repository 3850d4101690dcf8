"""Find proposers by the names that the command line and the settings use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from .structures import Proposer


def _selective_search(mode: str) -> Proposer:
    from .fast import SelectiveSearch

    return SelectiveSearch(mode=mode)


def _package() -> Proposer:
    from .package import PackageSelectiveSearch

    return PackageSelectiveSearch()


def _opencv(mode: str) -> Proposer:
    from .opencv import OpenCVSelectiveSearch

    return OpenCVSelectiveSearch(mode)


def _windows() -> Proposer:
    from .windows import SlidingWindows

    return SlidingWindows()


def _json(file: str) -> Proposer:
    from .files import JsonBoxes

    return JsonBoxes(Path(file))


def _matlab(file: str) -> Proposer:
    from .files import MatlabBoxes

    return MatlabBoxes(Path(file))


def _annotations(root: str) -> Proposer:
    from .files import AnnotatedBoxes

    return AnnotatedBoxes(Path(root))


def _edge_boxes(model: str | None = None) -> Proposer:
    from .edgeboxes import EdgeBoxes

    return EdgeBoxes(model=None if model is None else Path(model))


PROPOSERS: dict[str, Callable[[], Proposer]] = {
    "single": partial(_selective_search, "single"),
    "fast": partial(_selective_search, "fast"),
    "quality": partial(_selective_search, "quality"),
    "edgeboxes": _edge_boxes,
    "selectivesearch": _package,
    "opencv-single": partial(_opencv, "single"),
    "opencv-fast": partial(_opencv, "fast"),
    "opencv-quality": partial(_opencv, "quality"),
    "windows": _windows,
}
# names that go on with a colon and a file or folder, and how the command line writes what follows
WITH_FILE: dict[str, Callable[[str], Proposer]] = {
    "edgeboxes": _edge_boxes,
    "json": _json,
    "mat": _matlab,
    "annotations": _annotations,
}
_WRITTEN = ("edgeboxes:MODEL", "json:FILE", "mat:FILE", "annotations:ROOT")
NAMES = (*PROPOSERS, *_WRITTEN)


def make_proposer(name: str) -> Proposer:
    """Make the proposer of this name: one of `PROPOSERS`, or KIND:FILE with a kind of `WITH_FILE`.

    Raises ValueError if there is none, naming the known ones, if it needs another build of OpenCV, or if its file is
    not what it should be, and OSError if that cannot be read.
    """
    kind, colon, file = name.partition(":")
    if name in PROPOSERS:
        return PROPOSERS[name]()
    if colon and file and kind in WITH_FILE:
        return WITH_FILE[kind](file)
    raise ValueError(f"expected a proposer named {', '.join(NAMES)}, got {name!r}")
