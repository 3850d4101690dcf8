"""Race detectors: every image to each of them in turn, stage by stage, everything paid by everyone.

`race` measures and yields one `Run` per detector and image; `summarize` turns runs into the numbers of benchmark.json.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from proposals.structures import Proposer

from .evaluation import bootstrap_map, voc_ap
from .evaluation.bootstrap import bootstrap_difference
from .features import settings_key
from .images import read_image
from .journal import Journal
from .machine import Machine
from .structures import Detections, Detector, GroundTruth, Seconds, Size
from .timing import measure
from .warping import SIDE

BASELINE = "rcnn"
STAGES = ("decode", "proposals", "warp", "conv", "pool", "fc", "select")
BEFORE = ("decode", "proposals")  # what the paper's times leave out
METRIC = "voc07"
Array = np.ndarray[Any, np.dtype[Any]]


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
    `max_proposals`. Before the first run, each of `warm`, by default all racers, processes that image once without
    being measured. journal: a file that remembers runs, so that the same race continues where it was killed; these are
    yielded too. Raises ValueError or OSError that names the file if an image cannot be read.
    """
    book = None if journal is None else Journal(journal, _key(racers, proposer, photos, max_proposals))
    names, started = list(racers), False
    for number, photo in enumerate(photos):
        turn = names[number % len(names) :] + names[: number % len(names)]
        rows = {name: book.items.get(f"{name} {photo.image_id}") if book else None for name in turn}
        if None in rows.values():
            photo.path.read_bytes()  # so that no racer waits for the disk
        for name in turn:
            row = rows[name]
            if row is not None:
                yield _thaw((name, photo.image_id), row, racers[name].class_names)
                continue
            if not started:
                started = True
                for other in names if warm is None else warm:
                    _measure((other, racers[other]), proposer, photo, max_proposals)
            run = _measure((name, racers[name]), proposer, photo, max_proposals)
            if book:
                book.add(f"{name} {photo.image_id}", _freeze(run))
            yield run


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


def describe_detector(detector: Detector, model: str) -> dict[str, Any]:
    """Return kind, model, engine and scales of a detector, as benchmark.json names them. model: a name or a file."""
    settings, kind = detector.settings, type(detector).__name__.lower()
    scales = [SIDE] if kind == BASELINE else settings.get("scales") or [settings.get("shorter")]
    return {"kind": kind, "model": model, "engine": engine_of(detector), "scales": [s for s in scales if s]}


@dataclass(frozen=True, slots=True)
class Timing:
    """Hold medians over images, in seconds, and the first and third quartile of the same.

    quartiles: by stage, and of `total` and `total_without_proposals`. unaccounted: what the wall clock shows beyond the
    sum of all stages.
    """

    stages: dict[str, float]
    quartiles: dict[str, list[float]]
    total: float
    total_without_proposals: float
    unaccounted: float


@dataclass(frozen=True, slots=True)
class Speedup:
    """Hold how many times a detector is faster than the baseline: median and quartiles over images of paired ratios.

    conv_fc: without decoding and proposing. limit: what the operations of the two trunks alone would allow.
    """

    conv_fc: float
    conv_fc_quartiles: list[float]
    total: float
    total_quartiles: list[float]
    limit: float | None


def time_stages(runs: Sequence[Run]) -> Timing:
    """Summarise the seconds of one detector; a stage that a run did not need took no time."""
    names = {stage for run in runs for stage in run.stages}
    order = [*(stage for stage in STAGES if stage in names), *sorted(names - set(STAGES))]
    times = {stage: np.array([run.stages.get(stage, 0.0) for run in runs]) for stage in order}
    total = np.array([run.seconds() for run in runs])
    without = np.array([run.seconds(proposals=False) for run in runs])
    quartiles = {name: _quartiles(values) for name, values in times.items()}
    quartiles |= {"total": _quartiles(total), "total_without_proposals": _quartiles(without)}
    rest = _median(np.array([run.wall for run in runs]) - total)
    stages = {name: _median(values) for name, values in times.items()}
    return Timing(stages, quartiles, _median(total), _median(without), rest)


def compare(runs: Sequence[Run], baseline: Sequence[Run]) -> Speedup:
    """Compare a detector with the baseline on the same images, paired by the images' names."""
    others = {run.image_id: run for run in baseline}
    pairs = [(others[run.image_id], run) for run in runs]
    conv_fc = np.array([slow.seconds(proposals=False) / fast.seconds(proposals=False) for slow, fast in pairs])
    total = np.array([slow.seconds() / fast.seconds() for slow, fast in pairs])
    work = [(s.operations["conv"], f.operations["conv"]) for s, f in pairs if s.operations and f.operations]
    limit = _median(np.array([slow / fast for slow, fast in work])) if work else None
    return Speedup(_median(conv_fc), _quartiles(conv_fc), _median(total), _quartiles(total), limit)


def summarize(
    runs: Sequence[Run],
    descriptions: Mapping[str, Mapping[str, Any]],
    machine: Machine,
    baseline: str = BASELINE,
    truths: Sequence[GroundTruth] | None = None,
) -> dict[str, Any]:
    """Return the parts `images`, `detectors`, `speedup`, `speedups` and `map_differences` of benchmark.json.

    runs: of all detectors, each on the same images in the same order. descriptions: by name, what is said of each
    detector (`describe_detector`); their order is that of the detectors. truths: the objects of the images, in order.
    """
    if truths is not None and not any(bool((~truth.difficult).any()) for truth in truths):
        truths = None
    by_name = {name: [run for run in runs if run.racer == name] for name in descriptions}
    detectors = {}
    for name, own in by_name.items():
        operations = _operations(own)
        fractions = _fractions(own, str(descriptions[name].get("engine", "")), machine) if operations else None
        measured = {**asdict(time_stages(own)), "peak_memory_mb": None, "operations": operations}
        detectors[name] = {**descriptions[name], **measured, "fractions": fractions, "map": _accuracy(own, truths)}
    rivals = {name: own for name, own in by_name.items() if name != baseline and baseline in by_name}
    speedups = {name: asdict(compare(own, by_name[baseline])) for name, own in rivals.items()}
    first = next(iter(speedups.values()), None)
    differences = {name: _difference(own, by_name[baseline], truths) for name, own in rivals.items() if truths}
    return {
        "images": [
            {"image": run.image_id, "height": run.size[0], "width": run.size[1], "proposals": run.proposals}
            for run in next(iter(by_name.values()))
        ],
        "detectors": detectors,
        "speedup": {key: first[key] for key in ("conv_fc", "total")} if first else {},
        "speedups": speedups,
        "map_differences": differences,
    }


def _operations(runs: Sequence[Run]) -> dict[str, float] | None:
    rows = [run.operations for run in runs if run.operations is not None]
    return {key: _median(np.array([row[key] for row in rows])) for key in rows[0]} if rows else None


def _fractions(runs: Sequence[Run], engine: str, machine: Machine) -> dict[str, float]:
    """Return which part of the machine's peak each stage reaches; a peak that was not measured is left out."""
    gemm = machine.gemm_gflops.get("bfloat16" if "bf16" in engine else "float32", math.nan)
    peaks = {"conv": math.nan if "int8" in engine else gemm, "fc": gemm, "pool": machine.bandwidth_gbs}
    fractions = {}
    for stage, peak in peaks.items():
        times = [(run.operations or {}).get(stage, 0) / run.stages[stage] for run in runs if run.stages.get(stage)]
        if times and max(times) > 0 and peak > 0:
            fractions[stage] = _median(np.array(times)) / (peak * 1e9)
    return fractions


def _accuracy(runs: Sequence[Run], truths: Sequence[GroundTruth] | None) -> dict[str, float] | None:
    """Return the mean average precision and its 95 % interval, None without objects."""
    if truths is None:
        return None
    found, names = [run.detections for run in runs], _names(runs)
    low, high = bootstrap_map(found, truths, names, METRIC)
    return {METRIC: voc_ap(found, truths, names, METRIC).map, "low": low, "high": high}


def _difference(runs: Sequence[Run], baseline: Sequence[Run], truths: Sequence[GroundTruth]) -> dict[str, float]:
    """Return the mean average precision minus the baseline's, with its 95 % interval."""
    pair, names = ([run.detections for run in runs], [run.detections for run in baseline]), _names(runs)
    own, other = (voc_ap(found, truths, names, METRIC).map for found in pair)
    low, high = bootstrap_difference(pair, truths, names, METRIC)
    return {"difference": own - other, "low": low, "high": high}


def _names(runs: Sequence[Run]) -> tuple[str, ...]:
    return runs[0].detections.class_names


def _median(values: Array) -> float:
    return float(np.median(values))


def _quartiles(values: Array) -> list[float]:
    return [float(value) for value in np.quantile(values, [0.25, 0.75])]
