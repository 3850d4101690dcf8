"""Detect with a model and its successor on the same maps, and say what has changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .interrupts import held_back
from .progress import progress_bar

if TYPE_CHECKING:
    from detector.datasets import Dataset, Sample
    from detector.sppnet import SPPNet
    from detector.structures import Detections
    from proposals.structures import Proposals

    Both = tuple[list[Detections], list[Detections]]

_SIDES = ("before", "after")


def detect_both(
    nets: tuple[SPPNet, SPPNet], samples: Sequence[Sample], source: Callable[[Sample], Proposals], title: str
) -> Both:
    """Detect in every photo with two detectors that differ behind the maps alone: the trunk sees each photo once."""
    from detector.images import read_image

    found: Both = ([], [])
    with progress_bar(len(samples), title, "image") as bar, held_back() as check:
        for sample in samples:
            check()
            proposals = source(sample)
            pyramid = nets[0].feature_maps(read_image(sample.path))
            for net, into in zip(nets, found, strict=True):
                into.append(net.detect(pyramid, proposals))
            bar.update(1)
    return found


def count_alarms(found: Both, label: int, score: float) -> dict[str, float]:
    """Return how many detections of a class there are per photo that has none, with at least a score."""
    counts = [sum(int(((d.labels == label) & (d.scores >= score)).sum()) for d in side) for side in found]
    photos = len(found[0])
    return {"photos": photos, **{side: count / photos for side, count in zip(_SIDES, counts, strict=True)}}


def alarm_lines(alarms: Mapping[str, Mapping[str, float]], name: str, score: float) -> list[str]:
    """Tell the false alarms of a class per photo, for the photos learned from and the others."""
    what = {"background": "photos it learned from", "check": "other photos"}
    return [
        f"false alarms of {name} (score {score:g} or more) per photo, {rows['photos']} {what[option]}: "
        f"{rows['before']:.3f} before, {rows['after']:.3f} after"
        for option, rows in alarms.items()
    ]


def count_found(found: Both, dataset: Dataset, label: int, score: float) -> dict[str, int]:
    """Return how many objects of a class there are, and how many are found with at least a score: IoU 0.5, VOC's rule.

    A class that loses false alarms only because all its scores are lower loses objects here, though not its AP.
    """
    from detector.evaluation.voc import match_all

    matches = [match_all(side, dataset.truths, dataset.class_names)[label] for side in found]
    counts = [int((match.hits & (match.scores >= score)).sum()) for match in matches]
    return {"objects": int(matches[0].objects.sum()), **dict(zip(_SIDES, counts, strict=True))}


def found_line(counts: Mapping[str, int], name: str, score: float) -> str:
    """Tell how many objects of a class are found."""
    told = f"{counts['before']} before, {counts['after']} after"
    return f"objects of {name} found (score {score:g} or more), of {counts['objects']} in --test: {told}"


def measure_both(found: Both, dataset: Dataset) -> dict[str, Any]:
    """Return the mean AP and that of every class, in [0, 1] or None, before and after: voc07 at IoU 0.5."""
    from detector.evaluation import evaluate, to_json

    report = {}
    for side, detections in zip(_SIDES, found, strict=True):
        result = to_json(evaluate(detections, dataset.truths, dataset.class_names, ["voc07"]))["voc07"]
        report[side] = {"map": result["map"], "per_class": result["per_class"]}
    return report


def ap_lines(report: Mapping[str, Any], name: str, kind: str) -> list[str]:
    """Return a table of AP in per cent, before, after and the change, and what may be said of the other classes."""
    before, after = (report[side]["per_class"] for side in _SIDES)
    width = max(map(len, [*before, "class"]))
    head = f"{'class':<{width}}  before   after   change"
    rule = "-" * len(head)
    rows = [_row(f"{each:<{width}}", before[each], after[each], each == name) for each in before]
    mean = _row(f"{'mean':<{width}}", report["before"]["map"], report["after"]["map"], False)
    moved = [each for each in before if each != name and before[each] != after[each]]
    if not moved:
        note = "AP of all other classes: equal to the last bit"
    elif kind == "svm":
        note = f"AP of {', '.join(moved)} changed: photos have more detections than max_detections lets through"
    else:
        note = f"AP of {', '.join(moved)} changed: scores of a softmax add up to 1, their weights are the same"
    return ["voc07", head, rule, *rows, rule, mean, note]


def _row(name: str, before: float | None, after: float | None, own: bool) -> str:
    one, other = (math.nan if value is None else 100 * value for value in (before, after))
    cells = [f"{value:.2f}" if math.isfinite(value) else "-" for value in (one, other)]
    change = f"{other - one:+.2f}" if math.isfinite(one) and math.isfinite(other) else "-"
    return f"{name}  {cells[0]:>6}  {cells[1]:>6}  {change:>7}{'  *' if own else ''}"
