"""Race detectors: every image to each of them in turn, stage by stage, everything paid by everyone."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from proposals.structures import Proposer

from .features import settings_key
from .images import read_image
from .journal import Journal
from .structures import Detections, Detector, Seconds, Size
from .timing import measure

BEFORE = ("decode", "proposals")  # what the paper's times leave out


class Photo(Protocol):
    """Name the file of an image; image_id is unique among those of a race."""

    @property
    def image_id(self) -> str: ...

    @property
    def path(self) -> Path: ...


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Hold what one detector did with one image.

    size: (height, width). proposals: how many it was given. stages: seconds by stage, `decode` and `proposals` among
    them. wall: seconds from the file to the detections. operations: what arithmetic asks for, if the detector tells:
    floating-point operations of `conv` and `fc`, bytes of `pool`.
    """

    racer: str
    image_id: str
    size: Size
    proposals: int
    stages: Mapping[str, float]
    wall: float
    operations: Mapping[str, float] | None
    detections: Detections

    def seconds(self, proposals: bool = True) -> float:
        """Return the sum of all stages in seconds, or without decoding and proposing."""
        return sum(value for stage, value in self.stages.items() if proposals or stage not in BEFORE)


def race(
    racers: Mapping[str, Detector],
    proposer: Proposer,
    photos: Sequence[Photo],
    journal: Path | None = None,
    max_proposals: int = 2000,
    warm: Collection[str] | None = None,
) -> Iterator[Run]:
    """Give every image to each racer in turn, beginning with another one each time; yield each run when it is done.

    Every racer reads the file and proposes for itself, with the same proposer, of which it gets the first
    `max_proposals`. Each of `warm`, by default all racers, processes an image once without being measured before the
    first whose size makes its trunk see maps of a new size. journal: a file that remembers runs, so that the same race
    continues where it was killed; these are yielded too.
    Raises ValueError or OSError that names the file if an image cannot be read.
    """
    book = None if journal is None else Journal(journal, _key(racers, proposer, photos, max_proposals))
    names = list(racers)
    known: dict[str, set[Size]] = {name: set() for name in (names if warm is None else warm)}
    for number, photo in enumerate(photos):
        turn = names[number % len(names) :] + names[: number % len(names)]
        rows = {name: book.items.get(f"{name} {photo.image_id}") if book else None for name in turn}
        if None in rows.values():
            height, width = read_image(photo.path).shape[1:]  # so that no racer waits for the disk, either
        for name in turn:
            row = rows[name]
            if row is not None:
                yield _thaw((name, photo.image_id), row, racers[name].class_names)
                continue
            sizes = _trunk_sizes(racers[name], (int(height), int(width)))
            if name in known and not sizes <= known[name]:
                _measure((name, racers[name]), proposer, photo, max_proposals)
                known[name] |= sizes
            run = _measure((name, racers[name]), proposer, photo, max_proposals)
            if book:
                book.add(f"{name} {photo.image_id}", _freeze(run))
            yield run


def _trunk_sizes(detector: Detector, size: Size) -> set[Size]:
    """Return the sizes of what the trunk sees of an image of (height, width) pixels: each needs kernels of its own."""
    seen = getattr(getattr(detector, "detector", detector), "seen", None)
    return {size} if seen is None else set(seen(size, 1)[1])


def _measure(racer: tuple[str, Detector], proposer: Proposer, photo: Photo, max_proposals: int) -> Run:
    name, detector = racer
    seconds, start = Seconds(), time.perf_counter()
    with measure(seconds, "decode"):
        image = read_image(photo.path)
    with measure(seconds, "proposals"):
        proposals = proposer(image, photo.path).top(max_proposals)
    found = detector.predict(image, proposals, seconds)
    wall = time.perf_counter() - start
    size = (int(image.shape[1]), int(image.shape[2]))
    count = getattr(detector, "operations", None)
    operations = None if count is None else {k: float(v) for k, v in count(size, len(proposals)).items()}
    stages, bare = dict(seconds.stages), replace(found, image=None)
    return Run(name, photo.image_id, size, len(proposals), stages, wall, operations, bare)


def _key(racers: Mapping[str, Detector], proposer: Proposer, photos: Sequence[Photo], max_proposals: int) -> str:
    """Return what stands for all that shapes the runs."""
    detectors = {}
    for name, detector in racers.items():
        fingerprint = getattr(detector, "fingerprint", None)
        detectors[name] = [dict(detector.settings), fingerprint() if fingerprint else None, engine_of(detector)]
    images = [[photo.image_id, str(photo.path), photo.path.stat().st_size] for photo in photos]
    work = {"detectors": detectors, "proposals": dict(proposer.settings), "images": images}
    return settings_key({**work, "max_proposals": max_proposals, "threads": torch.get_num_threads()})


def _freeze(run: Run) -> dict[str, Any]:
    """Return a run as JSON types; every float32 survives exactly."""
    found = run.detections
    boxes = {"boxes": found.boxes.tolist(), "scores": found.scores.tolist(), "labels": found.labels.tolist()}
    row = {"size": list(run.size), "proposals": run.proposals, "stages": dict(run.stages), "wall": run.wall}
    return {**row, "operations": None if run.operations is None else dict(run.operations), "detections": boxes}


def _thaw(names: tuple[str, str], row: Mapping[str, Any], class_names: tuple[str, ...]) -> Run:
    boxes = torch.tensor(row["detections"]["boxes"], dtype=torch.float32).reshape(-1, 4)
    scores = torch.tensor(row["detections"]["scores"], dtype=torch.float32)
    labels = torch.tensor(row["detections"]["labels"], dtype=torch.int64)
    size = (int(row["size"][0]), int(row["size"][1]))
    found = Detections(boxes, scores, labels, size, tuple(class_names))
    return Run(*names, size, row["proposals"], row["stages"], row["wall"], row["operations"], found)


def engine_of(detector: Detector) -> str:
    """Return the name of what runs a detector's layers; `eager` for one that does not tell."""
    engine = getattr(detector, "engine", None) or detector.settings.get("engine") or "eager"
    return str(getattr(engine, "name", engine))
