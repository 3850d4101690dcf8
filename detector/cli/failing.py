"""Explain for `sppnet evaluate --errors` why detections failed, and draw the worst cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from .interrupts import held_back
from .progress import progress_bar

if TYPE_CHECKING:
    from detector.datasets import Dataset, Sample
    from detector.evaluation import Candidates, ErrorReport, Mistake, Rules
    from detector.evaluation_report import Picture
    from detector.structures import Detections
    from proposals.structures import Proposals

    from .models import Model

Propose = Callable[["Sample"], "Proposals"]
_MOST, _PER_IMAGE = 12, 2  # pictures of each kind, and of one photo among them
_NEAR = 0.3  # IoU from which a detection or a proposal is drawn beside a mistake
_FEW = 3  # proposals that are drawn
_FAINT, _SEEN = 0.2, 0.5  # scores from which a detection is drawn there, and wherever it is


def explain(
    detections: Sequence[Detections],
    dataset: Dataset,
    rules: Rules,
    asked: tuple[Model, Propose] | None,
) -> tuple[ErrorReport, list[Picture]]:
    """Say why detections failed, print what each cause costs, and draw the worst misses and false alarms.

    asked: the detector and what proposes, to learn why objects were missed; None for detections made elsewhere.
    """
    from detector.evaluation import find_errors

    with progress_bar(len(dataset), "explaining", "image") as bar, held_back() as check:

        def candidates(image: int) -> Candidates:
            check()
            bar.update(image + 1 - bar.n)
            assert asked is not None
            return _candidates(*asked, dataset[image])

        report = find_errors(
            detections, dataset.truths, dataset.class_names, rules, None if asked is None else candidates
        )
        bar.update(len(dataset) - bar.n)
    click.echo(format_errors(report))
    propose = None if asked is None else asked[1]
    seen = [mistake for mistake in report.mistakes if dataset[mistake.image].path.is_file()]
    return report, [_draw(mistake, detections, dataset, propose) for mistake in choose_worst(seen)]


def format_errors(report: ErrorReport) -> str:
    """Return a table: a row per cause, how often it is, and what repairing it would win, in points."""
    rows = [(cause, str(report.counts.get(cause, "")), f"{100 * cost:.2f}") for cause, cost in report.costs.items()]
    width = max(len(cause) for cause, _, _ in rows)
    head = f"{'cause':<{width}}  {'count':>6}  {'mAP, points':>11}"
    lines = [f"{cause:<{width}}  {count:>6}  {cost:>11}" for cause, count, cost in rows]
    return "\n".join([head, "-" * len(head), *lines])


def choose_worst(mistakes: Sequence[Mistake]) -> list[Mistake]:
    """Choose the largest missed objects and the surest false alarms, few of one photo."""

    def area(mistake: Mistake) -> float:
        x1, y1, x2, y2 = mistake.box
        return (x2 - x1) * (y2 - y1)

    misses = sorted((m for m in mistakes if m.score is None), key=area, reverse=True)
    alarms = [m for m in mistakes if m.score is not None]
    chosen: list[Mistake] = []
    for kind in (misses, alarms):
        taken: Counter[int] = Counter()
        for mistake in kind:
            if sum(taken.values()) < _MOST and taken[mistake.image] < _PER_IMAGE:
                taken[mistake.image] += 1
                chosen.append(mistake)
    return chosen


def _candidates(net: Model, propose: Propose, sample: Sample) -> Candidates:
    from detector.evaluation import Candidates
    from detector.images import read_image

    boxes, scores, refined = net.candidates(read_image(sample.path), propose(sample))
    return Candidates(boxes.numpy(), scores.numpy(), refined.numpy(), net.config.min_score)


def _draw(mistake: Mistake, detections: Sequence[Detections], dataset: Dataset, propose: Propose | None) -> Picture:
    import torch

    from detector.evaluation_report import Picture
    from detector.failures import draw_failure
    from detector.images import read_image

    sample, found = dataset[mistake.image], detections[mistake.image]
    box = torch.tensor(mistake.box)
    target = box if mistake.score is None else None
    if mistake.score is not None and mistake.object is not None:
        target = sample.truth.boxes[mistake.object].float()
    shown = _near(found, box, mistake)
    proposals = torch.zeros(0, 4)
    if propose is not None and target is not None:
        from torchvision.ops import box_iou

        boxes = propose(sample).boxes
        overlaps = box_iou(target[None], boxes)[0]
        best = overlaps.argsort(descending=True, stable=True)[:_FEW]
        proposals = boxes[best[overlaps[best] >= _NEAR]]
    name = dataset.class_names[mistake.label]
    score = "" if mistake.score is None else f", score {mistake.score:.2f}"
    overlap = f", IoU {mistake.overlap:.2f}" if mistake.overlap == mistake.overlap else ""
    if mistake.score is None and overlap:
        overlap = f", best proposal's {overlap[2:]}"
    caption = f"{sample.path.name}: {name}, {mistake.cause}{score}{overlap}"
    kind = "miss" if mistake.score is None else "false alarm"
    return Picture(kind, caption, draw_failure(read_image(sample.path), target, shown, proposals))


def _near(found: Detections, box: object, mistake: Mistake) -> Detections:
    """Return the false alarm alone, or for a miss the detections that overlap the object or are sure."""
    from dataclasses import replace

    import torch
    from torchvision.ops import box_iou

    overlaps = box_iou(torch.as_tensor(box).double()[None], found.boxes.double())[0]
    if mistake.score is not None:
        keep = (overlaps > 0.999) & (found.labels == mistake.label) & ((found.scores - mistake.score).abs() < 1e-6)
    else:
        keep = ((overlaps >= _NEAR) & (found.scores >= _FAINT)) | (found.scores >= _SEEN)
    boxes, scores, labels = found.boxes[keep].float(), found.scores[keep].float(), found.labels[keep]
    return replace(found, boxes=boxes, scores=scores, labels=labels, order=None, image=None)
