"""Fill and read the caches that training learns from: proposals and convolutional maps, one file each per image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from proposals.structures import Proposals

from .datasets import Sample
from .features import FeatureStore
from .images import read_image
from .structures import FeatureMap


class ProposalCache(Protocol):
    """Keep proposals on disk (`proposals.store.ProposalStore`)."""

    def path(self, image_id: str) -> Path: ...

    def load(self, image_id: str) -> Proposals | None: ...

    def get(self, image_id: str, image: Tensor, path: Path | None = None) -> Proposals: ...


Photo = TypeVar("Photo")
AnyPhoto = TypeVar("AnyPhoto", contravariant=True)


class Cache(Protocol[AnyPhoto]):
    """Keep what is computed from a photo once."""

    def complete(self, sample: AnyPhoto, /) -> bool: ...

    def fill(self, sample: AnyPhoto, /) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Caches:
    """Give the maps and proposals of a sample, from disk if they are there, else computed and kept."""

    proposals: ProposalCache
    features: FeatureStore

    def complete(self, sample: Sample) -> bool:
        """Say whether both files of a sample exist; a damaged file shows when it is read, and is made again."""
        return self.features.path(sample.image_id).exists() and self.proposals.path(sample.image_id).exists()

    def fill(self, sample: Sample) -> None:
        """Compute and keep what is missing. Raises ImageError for a file that is not a whole image."""
        image = read_image(sample.path)
        self.proposals.get(sample.image_id, image, sample.path)
        if not self.features.path(sample.image_id).exists():
            self.features.compute(sample.image_id, image)

    def read(self, sample: Sample) -> tuple[tuple[FeatureMap, ...], Tensor]:
        """Return a sample's maps, one per tap, and its proposal boxes (R, 4) float32, best first."""
        maps, proposals = self.features.load(sample.image_id), self.proposals.load(sample.image_id)
        if maps is None or proposals is None:
            image = read_image(sample.path)
            if maps is None:
                computed = self.features.compute(sample.image_id, image)
                maps = self.features.load(sample.image_id) or computed  # as the others are: rounded to float16
            proposals = proposals or self.proposals.get(sample.image_id, image, sample.path)
        return maps, proposals.boxes


def prepare(samples: Sequence[Photo], caches: Cache[Photo], workers: int, report: Callable[[int], None]) -> None:
    """Fill the caches for all samples, `workers` images at a time; a killed run continues with what is missing.

    report: is given the number of images finished since it was last called.
    """
    missing = [sample for sample in samples if not caches.complete(sample)]
    report(len(samples) - len(missing))
    with one_thread_each(), ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: set[Future[None]] = set()
        try:
            for sample in missing:
                waiting.add(pool.submit(caches.fill, sample))
                if len(waiting) >= 2 * workers:
                    waiting = _collect(waiting, report)
            while waiting:
                waiting = _collect(waiting, report)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _collect(waiting: set[Future[None]], report: Callable[[int], None]) -> set[Future[None]]:
    """Wait for at least one image; raise what its worker raised."""
    done, rest = wait(waiting, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
    report(len(done))
    return rest


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let torch use one thread per worker inside the block; images run side by side instead."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
