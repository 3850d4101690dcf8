"""Propose regions of many images, in this process or in several."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import click

if TYPE_CHECKING:
    from proposals.store import ProposalStore


class ImageFile(Protocol):
    """Hold the file of an image and a name for it that is unique and safe as a file name."""

    @property
    def image_id(self) -> str: ...

    @property
    def path(self) -> Path: ...


class Finished(NamedTuple):
    """Say how long an image took, and what was wrong with it, if anything."""

    seconds: float
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Work:
    """Say which proposer works for which folder; `store` is that of this process."""

    proposals: str
    folder: Path
    store: ProposalStore


Runner = Callable[[Work, Sequence[ImageFile], int], Iterator[Finished]]


def propose_here(work: Work, files: Sequence[ImageFile], workers: int) -> Iterator[Finished]:
    """Propose one image after the other, in this process."""
    for file in files:
        yield _propose(work.store, file.image_id, file.path)


def propose_in_processes(work: Work, files: Sequence[ImageFile], workers: int) -> Iterator[Finished]:
    """Propose several images at a time, each in a process of its own that uses one thread; yield as they are finished.

    Processes and not threads: the `selectivesearch` package is written in Python, which uses one core at a time.
    Raises click.ClickException if a process dies.
    """
    import multiprocessing

    context = multiprocessing.get_context("spawn")  # a fork would copy locks that threads of this process hold
    pool = ProcessPoolExecutor(workers, context, _start, (work.proposals, str(work.folder)))
    waiting: set[Future[Finished]] = set()
    try:
        for file in files:
            with _without_interrupts():  # submit starts processes
                waiting.add(pool.submit(_run, file.image_id, file.path))
            if len(waiting) >= 2 * workers:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool as error:
        message = "expected workers to live, but one died, perhaps for want of memory; the same command continues"
        raise click.ClickException(f"{message}, fewer --workers need less") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back, from processes that are started meanwhile, too: a terminal sends it to all of a command's.

    Without, one that is still importing dies of it. What is held back reaches this process at the end of the block.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_store: Any = None  # of a worker process


def _start(proposals: str, folder: str) -> None:
    """Make a worker ready: one thread, no Ctrl-C, which the main process handles, and no life of its own."""
    global _store
    from proposals.store import ProposalStore

    from .options import use_threads
    from .progress import prepare_proposer

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    use_threads(1)
    _store = ProposalStore(Path(folder), prepare_proposer(proposals, 1, pyramid=False))


def _die_with_parent() -> None:
    """Wait for the main process to end, even if it is killed, and end with it."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _run(image_id: str, path: Path) -> Finished:
    return _propose(_store, image_id, path)


def _propose(store: ProposalStore, image_id: str, path: Path) -> Finished:
    """Propose regions of one image and keep them; a file that cannot be used becomes a problem that names it."""
    from detector.images import read_image

    try:
        image = read_image(path)
        start = time.perf_counter()
        store.get(image_id, image, path)
        return Finished(time.perf_counter() - start)
    except ValueError as error:
        text = str(error)
        return Finished(0.0, text if str(path) in text else f"{path}: {text}")
    except FileNotFoundError as error:
        return Finished(0.0, f"{path}: {error.strerror or error}")
