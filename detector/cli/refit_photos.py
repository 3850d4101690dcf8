"""Find the photos that `sppnet refit` learns from and measures on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .inputs import find_images

if TYPE_CHECKING:
    from detector.datasets import Dataset, Sample
    from detector.sppnet import SPPNet

_KNOWN, _HAVING = 300, 200  # photos of --data at most, and those with an object of the class, if there are others


@dataclass(frozen=True, slots=True, eq=False)
class Photos:
    """Hold the photos by what they are for.

    background, boxed: new ones. known: some of --data, always the same for a class and a model. check: background to
    count false alarms in alone. test: the annotated photos to measure on, None without.
    """

    background: list[Sample]
    boxed: list[Sample]
    known: list[Sample]
    check: list[Sample]
    test: Dataset | None

    @classmethod
    def open(cls, net: SPPNet, label: int, named: Mapping[str, Sequence[str]], known: bool) -> Photos:
        """Open what the command line names. known: whether photos of --data are wanted.

        Raises ValueError for a photo that cannot be used, an option that names none, and one that is learned from and
        checked on as well.
        """
        from detector.datasets import open_datasets

        background, check = (_open_folders(named[option], f"--{option}") for option in ("background", "check"))
        both = {sample.image_id for sample in background} & {sample.image_id for sample in check}
        if both:
            path = next(sample.path for sample in check if sample.image_id in both)
            raise ValueError(f"--check: expected photos that are not in --background, got {path}")
        boxed = list(open_datasets(named["boxes"], net.class_names)) if named["boxes"] else []
        if boxed and not _has(boxed, label):
            raise ValueError(f"--boxes: expected an object of the class {net.class_names[label]}, got none")
        every = list(open_datasets(named["data"], net.class_names)) if known else []
        if known and not _has(every, label):
            raise ValueError(f"--data: expected an object of the class {net.class_names[label]}, got none")
        some = _choose(every, label, net.config.seed)
        test = open_datasets(named["test"], net.class_names, exact=True) if named["test"] else None
        learned = {sample.path.resolve() for sample in boxed}
        again = next((sample.path for sample in test or () if sample.path.resolve() in learned), None)
        if again is not None:
            raise ValueError(f"--test: expected photos that are not in --boxes, got {again}")
        return cls(background, boxed, some, check, test)

    @property
    def new(self) -> list[Sample]:
        """Return the photos to learn from that the model does not know."""
        return [*self.background, *self.boxed]

    @property
    def tested(self) -> Sequence[Sample]:
        """Return the photos to measure average precision on."""
        return () if self.test is None else self.test.samples

    def counts(self) -> dict[str, int]:
        """Return how many photos there are of each kind."""
        parts = (self.background, self.boxed, self.known, self.check, self.tested)
        return dict(zip(("background", "boxes", "known", "check", "test"), map(len, parts), strict=True))


def _has(samples: Sequence[Sample], label: int) -> bool:
    """Tell whether there is an object of a class."""
    return any(bool((sample.truth.labels == label).any()) for sample in samples)


def _open_folders(paths: Sequence[str], option: str) -> list[Sample]:
    """Return the photos of folders and globs, each once, as samples without objects; their files give their names."""
    import torch

    from detector.datasets import Sample
    from detector.images import read_image
    from detector.structures import GroundTruth

    files, problems = find_images(paths)
    if problems:
        raise click.UsageError(f"{option}: {problems[0]}")
    samples: dict[str, Sample] = {}
    for file in files:
        height, width = read_image(file).shape[1:]
        digits = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
        nothing = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))
        truth = GroundTruth(*nothing, (height, width))
        samples.setdefault(digits, Sample(f"photo-{digits}", Path(file), truth))
    return list(samples.values())


def _choose(samples: Sequence[Sample], label: int, seed: int) -> list[Sample]:
    """Choose at most 300 photos: 200 with objects of a class and 100 without, if there are enough of both."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(samples), generator=generator).tolist()
    own = [bool((samples[index].truth.labels == label).any()) for index in order]
    having = [index for index, has in zip(order, own, strict=True) if has]
    others = [index for index, has in zip(order, own, strict=True) if not has]
    share = max(_HAVING, _KNOWN - len(others))
    chosen = having[:share]
    return [samples[index] for index in sorted([*chosen, *others[: _KNOWN - len(chosen)]])]
