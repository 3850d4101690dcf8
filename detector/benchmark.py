"""Turn the runs of a race (`detector.racing`) into the numbers of benchmark.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .evaluation import bootstrap_map, voc_ap
from .evaluation.bootstrap import bootstrap_difference
from .machine import Machine
from .racing import Run, engine_of
from .structures import Detector, GroundTruth
from .warping import SIDE

BASELINE = "rcnn"
STAGES = ("decode", "proposals", "warp", "conv", "pool", "fc", "select")
METRIC = "voc07"
Array = np.ndarray[Any, np.dtype[Any]]


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
