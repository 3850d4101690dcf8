"""Propose regions of an image that may hold an object: selective search and what it is compared with.

    proposer = make_proposer("fast")
    boxes = proposer(image).boxes  # (R, 4) float32, xyxy, best first

`structures` says what a proposer takes and returns. The names here are loaded when they are first used, so that
`import proposals` costs nothing. This package imports nothing from `detector`.
"""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
    from .fast import SelectiveSearch
    from .opencv import OpenCVSelectiveSearch
    from .package import PackageSelectiveSearch
    from .recall import average_best_overlap, best_overlaps, recall_at, recall_by_count
    from .registry import make_proposer
    from .store import ProposalStore
    from .structures import Proposals, Proposer
    from .windows import SlidingWindows

__all__ = [
    "OpenCVSelectiveSearch",
    "PackageSelectiveSearch",
    "ProposalStore",
    "Proposals",
    "Proposer",
    "SelectiveSearch",
    "SlidingWindows",
    "average_best_overlap",
    "best_overlaps",
    "make_proposer",
    "recall_at",
    "recall_by_count",
]

_MODULES = {
    "OpenCVSelectiveSearch": "opencv",
    "PackageSelectiveSearch": "package",
    "ProposalStore": "store",
    "Proposals": "structures",
    "Proposer": "structures",
    "SelectiveSearch": "fast",
    "SlidingWindows": "windows",
    "average_best_overlap": "recall",
    "best_overlaps": "recall",
    "make_proposer": "registry",
    "recall_at": "recall",
    "recall_by_count": "recall",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
