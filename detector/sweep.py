"""Measure how the time of each detector grows with the number of proposals, or with the size of the image.

A sweep is a race in which every detector starts once for each value, so that all values are measured under the same
conditions, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from proposals.structures import Proposals, Proposer

from .benchmark import time_stages
from .racing import Photo, Run, engine_of, race
from .sppnet import SPPNet
from .structures import BoxScores, Detections, Detector, Seconds

VALUES = {"proposals": (100, 200, 500, 1000, 2000, 4000), "scale": (224, 300, 480, 576, 688, 864, 1200)}
_AT = " at "  # between a detector's name and a value


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Limited:
    """Give a detector the first `count` proposals only."""

    detector: Detector
    count: int

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the detector's classes."""
        return self.detector.class_names

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return the detector's settings, and the count."""
        return {**self.detector.settings, "count": self.count}

    @property
    def engine(self) -> str:
        """Return the name of the detector's engine."""
        return engine_of(self.detector)

    def fingerprint(self) -> str:
        """Return what stands for the detector's weights, "" if it does not tell."""
        return str(getattr(self.detector, "fingerprint", str)())

    def predict(self, image: Tensor, proposals: Proposals, seconds: Seconds | None = None) -> Detections:
        """Find objects among the first proposals."""
        return self.detector.predict(image, proposals.top(self.count), seconds)

    def predict_boxes(self, image: Tensor, boxes: Tensor, seconds: Seconds | None = None) -> BoxScores:
        """Score boxes that the user brought, all of them."""
        return self.detector.predict_boxes(image, boxes, seconds)


def sweep(
    kind: str,
    racers: Mapping[str, Detector],
    proposer: Proposer,
    photos: Sequence[Photo],
    journal: Path | None = None,
    max_proposals: int = 2000,
) -> Iterator[Run]:
    """Race all detectors at all values of `VALUES[kind]`; yield runs as `race` does, named by detector and value.

    max_proposals: how many proposals an image has in a sweep of scales.
    """
    entries: dict[str, Detector] = {}
    for name, detector in racers.items():
        for value in VALUES[kind]:
            entry = Limited(detector, value) if kind == "proposals" else at_scale(detector, value)
            entries[f"{name}{_AT}{value}"] = entry
    most = max(VALUES[kind]) if kind == "proposals" else max_proposals
    # a detector that the value does not change warms up once, with the largest value
    owners = {id(entry.detector if isinstance(entry, Limited) else entry): name for name, entry in entries.items()}
    return race(entries, proposer, photos, journal, most, warm=list(owners.values()))


def at_scale(detector: Detector, shorter: int) -> Detector:
    """Return an SPP-net of one scale that resizes the shorter side to so many pixels, and shares all weights.

    Its longer side may have twice as many. Other detectors do not depend on the scale and are returned as they are.
    """
    if not isinstance(detector, SPPNet) or len(detector.settings.get("scales") or ()) > 1:
        return detector
    config = dataclasses.replace(detector.config, shorter=shorter, longest=2 * shorter, scales=())
    resized = type(detector)(config, detector.class_names, detector.trunk)
    resized.load_state_dict(detector.state_dict(), assign=True)
    resized.eval().use_engine(detector.engine.name)
    return resized


def summarize_sweep(kind: str, runs: Sequence[Run], names: Sequence[str]) -> dict[str, Any]:
    """Return the part `sweep` of benchmark.json. names: of the detectors.

    `regions` holds for each value how many proposals an image had in the median: fewer than a value asks for if the
    proposer found no more.
    """
    values = VALUES[kind]
    by_entry: dict[str, list[Run]] = {}
    for run in runs:
        by_entry.setdefault(run.racer, []).append(run)
    detectors: dict[str, dict[str, list[float]]] = {}
    for name in names:
        timings = [time_stages(by_entry[f"{name}{_AT}{value}"]) for value in values]
        stages = dict.fromkeys(stage for timing in timings for stage in timing.stages)
        columns = {stage: [timing.stages.get(stage, 0.0) for timing in timings] for stage in stages}
        columns["total"] = [timing.total for timing in timings]
        columns["total_without_proposals"] = [timing.total_without_proposals for timing in timings]
        detectors[name] = columns
    counts = [run.proposals for run in by_entry[f"{names[0]}{_AT}{values[0]}"]]
    limits = values if kind == "proposals" else [max(counts)] * len(values)
    regions = [float(np.median(np.minimum(counts, limit))) for limit in limits]
    return {"kind": kind, "values": list(values), "regions": regions, "detectors": detectors}
