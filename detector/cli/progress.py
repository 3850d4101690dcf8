"""Show how far long work is, and say beforehand what will make it wait."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast

import click

if TYPE_CHECKING:
    from proposals.structures import Proposer

_COMPILING = "compiling kernels, once: about 20 seconds"
_LOG_SECONDS = 10.0  # between two lines where the output is a file


def progress_bar(total: int, title: str, unit: str, done: int = 0) -> Any:
    """Return a tqdm bar on stderr. done: what an earlier process did; it does not count for the speed."""
    from tqdm import tqdm

    interval = 0.1 if sys.stderr.isatty() else _LOG_SECONDS
    return tqdm(
        total=total, initial=done, desc=title, unit=unit, dynamic_ncols=True, smoothing=0.05, mininterval=interval
    )


def prepare_proposer(name: str, threads: int, pyramid: bool = True) -> Proposer:
    """Make a proposer that uses at most so many threads.

    With `pyramid`, say so if its kernels, or the pyramid's, must be compiled.
    """
    from proposals.registry import make_proposer

    proposer: Any = make_proposer(name)
    if hasattr(proposer, "threads"):
        proposer.threads = min(threads, proposer.threads)
    if pyramid:
        announce_compiling(proposer)
    return cast("Proposer", proposer)


def announce_compiling(proposer: Proposer | None = None) -> None:
    """Say so if the pyramid's kernels, or those of a proposer, have yet to be compiled on this machine."""
    from detector import pooling

    modules: list[Any] = [pooling] if proposer is None else [pooling, sys.modules[type(proposer).__module__]]
    if not all(module.is_compiled() for module in modules if hasattr(module, "is_compiled")):
        click.echo(_COMPILING, err=True)


def compile_kernels(proposer: Proposer) -> None:
    """Compile the kernels of a proposer on this machine if that is yet to be done, and say so."""
    module: Any = sys.modules[type(proposer).__module__]
    if hasattr(module, "is_compiled") and not module.is_compiled():
        import torch

        click.echo(_COMPILING, err=True)
        proposer((torch.arange(3 * 96 * 128) * 7919 % 256).to(torch.uint8).reshape(3, 96, 128))
