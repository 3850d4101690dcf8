"""Explain the score of a detection by the bins of its region, where the score is linear in them.

A support vector machine on pool5 reads the pyramid of a region, x with bins b = 1 .. B of C channels each (He et al.
2015, section 4.1), by the weights w and the intercept a of its class. Its margin falls apart into the bins exactly:

    margin = a + sum over b of <w_b, x_b>

No approximation and no gradient is in it. A bin covers whole cells, hence a rectangle of the photo, and what it
contributes is spread evenly over that rectangle: the heat map, whose sum is the margin less the intercept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proposals.structures import Proposals

from .machines import MachineNet, squash
from .scales import FeaturePyramid
from .selection import select_traced, weigh_by_rank
from .structures import BoxScores, Detections, FeatureMap, Seconds, Size
from .timing import measure


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """Hold what every bin adds to the margin of one detection.

    label, score: those of the detection. margin: the machine's, as the detector computed it, in float32; it is
    intercept + the sum of contributions up to rounding. weight: what the score was multiplied by for the rank of its
    proposal, 1 without a rank prior: score = weight / (1 + exp(-margin)).
    region: (4,) float32, the proposal whose features were scored. The detection's box is this one corrected, and
    perhaps the mean of several.
    levels: bins per side of each level. contributions: (B,) float64, <w_b, x_b> of each bin, in the order of the
    pyramid: level by level, row by row. boxes: (B, 4) float64, what each bin covers, xyxy pixels inside the image.
    """

    label: int
    score: float
    margin: float
    weight: float
    intercept: float
    region: Tensor
    levels: tuple[int, ...]
    contributions: Tensor
    boxes: Tensor

    @property
    def total(self) -> float:
        """Return the sum of all contributions: the margin less the intercept."""
        return float(self.contributions.sum())

    def by_level(self) -> dict[int, float]:
        """Return the sum of the contributions of each level, by its bins per side."""
        parts = self.contributions.split([n * n for n in self.levels])
        return {n: float(part.sum()) for n, part in zip(self.levels, parts, strict=True)}

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types: contributions to 6 digits after the point, boxes in hundredths of a pixel."""
        rows = zip(self.boxes.tolist(), self.contributions.tolist(), strict=True)
        return {
            "margin": round(self.margin, 6),
            "intercept": round(self.intercept, 6),
            "rank_weight": round(self.weight, 6),
            "region": [round(v, 2) for v in self.region.tolist()],
            "levels": {str(n): round(value, 6) for n, value in self.by_level().items()},
            "bins": [{"box": [round(v, 2) for v in box], "contribution": round(value, 6)} for box, value in rows],
        }


def check_linear(net: object) -> MachineNet:
    """Return a detector whose scores fall apart into bins. Raises ValueError that says how to train one for others."""
    if isinstance(net, MachineNet) and net.config.svm_layer == "pool5":
        return net
    if isinstance(net, MachineNet):
        got = f"one on {net.config.svm_layer}"
    else:
        config = getattr(net, "config", None)
        got = f"a model of kind {config.detector}" if config is not None else type(net).__name__
    raise ValueError(
        f"expected a model of kind svm on pool5, got {got}; "
        "train one with `sppnet train DATA --detector svm --start MODEL --set svm_layer=pool5 --out DIR`"
    )


@dataclass(frozen=True, slots=True, eq=False)
class TracedDetections:
    """Hold detections, and of each the proposal that gave it its score.

    regions: (D, 4) float32. margins: (D,) float32, of the label. weights: (D,) float64, of the proposal's rank.
    pyramid: the maps of the image.
    """

    detections: Detections
    regions: Tensor
    margins: Tensor
    weights: Tensor
    pyramid: FeaturePyramid

    def above(self, score: float) -> TracedDetections:
        """Return the detections with at least this score."""
        keep = self.detections.scores >= score
        parts = self.regions[keep], self.margins[keep], self.weights[keep]
        return TracedDetections(self.detections.above(score), *parts, self.pyramid)


@torch.inference_mode()
def detect_traced(
    net: MachineNet, image: Tensor, proposals: Proposals, seconds: Seconds | None = None
) -> TracedDetections:
    """Find the objects in a (3, H, W) uint8 image among its proposals: what `net.predict` finds, with its sources."""
    with measure(seconds, "conv"):
        pyramid = net.feature_maps(image)
    boxes = proposals.boxes[: net.config.max_proposals]
    ranks = net.rank_shortlisted(pyramid, boxes, seconds)
    boxes = boxes[ranks]
    margins, deltas = net.margins(pyramid, boxes, seconds)
    with measure(seconds, "select"):
        weighed = weigh_by_rank(squash(margins).cpu(), net.config.rank_prior, ranks)
        found, rows = select_traced(boxes, (weighed, deltas.cpu()), pyramid.size, net.config)
    weights = 1 / (1 + net.config.rank_prior * ranks[rows].double() / 1000)
    detections = Detections(*found, pyramid.size, net.class_names, image)
    return TracedDetections(detections, boxes[rows], margins.cpu()[rows, found[2]], weights, pyramid)


@torch.inference_mode()
def explain(net: MachineNet, traced: TracedDetections) -> list[Explanation]:
    """Explain detections, in their order. Raises ValueError for a detector whose scores do not fall apart."""
    check_linear(net)
    found, regions, config = traced.detections, traced.regions, net.config
    if len(found) == 0:
        return []
    device = net.trunk.mean.device
    windows, places = traced.pyramid.locate(regions.to(device), config.scale_rule, config.projection)
    pooled, _, rows = net.read(traced.pyramid, regions)
    weight = net.machines.weight.unflatten(1, pooled.shape[1:])[found.labels.to(device)]
    contributions = (weight.double() * pooled[rows].double()).sum(dim=2).cpu()
    explanations = []
    for i, label in enumerate(found.labels.tolist()):
        level, x1, y1, x2, y2 = windows[places[i]].tolist()
        explanations.append(
            Explanation(
                label=label,
                score=float(found.scores[i]),
                margin=float(traced.margins[i]),
                weight=float(traced.weights[i]),
                intercept=float(net.machines.bias[label]),
                region=regions[i],
                levels=config.levels,
                contributions=contributions[i],
                boxes=bin_boxes(traced.pyramid.fine[level], (x1, y1, x2, y2), config.levels, found.size),
            )
        )
    return explanations


@torch.inference_mode()
def explain_boxes(net: MachineNet, image: Tensor, scores: BoxScores) -> list[Explanation]:
    """Explain the score of the best class of every box that a user brought, in their order.

    image: (3, H, W) uint8. scores: what `net.predict_boxes` says of the boxes. The image is looked at once more.
    Raises ValueError for a detector whose scores do not fall apart.
    """
    check_linear(net)
    pyramid = net.feature_maps(image)
    best, labels = scores.probabilities[:, :-1].max(dim=1)
    margins = net.margins(pyramid, scores.boxes)[0].cpu()[torch.arange(len(labels)), labels]
    found = Detections(scores.boxes, best, labels, pyramid.size, net.class_names)
    weights = torch.ones(len(labels), dtype=torch.float64)
    return explain(net, TracedDetections(found, scores.boxes, margins, weights, pyramid))


def bin_boxes(
    feature_map: FeatureMap, window: tuple[int, int, int, int], levels: tuple[int, ...], size: Size
) -> Tensor:
    """Return the pixels of the image that each bin of a window covers: (B, 4) float64 xyxy, inside the image.

    window: cells x1, y1, x2, y2, exclusive. size: (height, width) of the image. A cell covers the square of one stride
    around its centre, cells at the border of the map also what lies beyond, as far as the image goes. Boxes are not
    empty: a bin wholly in the map's padding covers the row or column of pixels that is nearest.
    """
    parts = []
    for n in levels:
        columns = _bin_ends(feature_map, (window[0], window[2]), n, (1, size[1]))
        rows = _bin_ends(feature_map, (window[1], window[3]), n, (0, size[0]))
        parts += [[x1, y1, x2, y2] for y1, y2 in rows for x1, x2 in columns]
    return torch.tensor(parts, dtype=torch.float64)


def _bin_ends(
    feature_map: FeatureMap, window: tuple[int, int], n: int, image: tuple[int, int]
) -> list[tuple[float, float]]:
    """Return the n bins of a window along one axis in pixels. image: the axis, 0 for y and 1 for x, and its length."""
    axis, length = image
    count, cells = feature_map.values.shape[1 + axis], window[1] - window[0]
    ends = []
    for i in range(n):
        first, last = window[0] + i * cells // n, window[0] + -(-(i + 1) * cells // n)
        # the middle of pixel offset + stride * j, where cell j is centred, is half a pixel further as a coordinate
        start, end = (
            (feature_map.offsets[axis] + 0.5 + feature_map.stride * (cell - 0.5)) / feature_map.scale[axis]
            for cell in (first, last)
        )
        start = 0.0 if first == 0 else min(max(start, 0.0), float(length))
        end = float(length) if last == count else min(max(end, 0.0), float(length))
        if end <= start:
            start = min(max(math.floor(start), 0), length - 1)
            end = start + 1
        ends.append((float(start), float(end)))
    return ends


@dataclass(frozen=True, slots=True, eq=False)
class HeatMap:
    """Hold what every pixel of a part of the image adds to a margin.

    values: (h, w) float64; their sum is the margin less the intercept. corner: (x, y), the first pixel of the part;
    all others of the image add nothing.
    """

    values: Tensor
    corner: tuple[int, int]


def heat_map(explanation: Explanation) -> HeatMap:
    """Spread every contribution evenly over what its bin covers, and add up; pixels are shared by area."""
    boxes = explanation.boxes
    left, top = (math.floor(float(v)) for v in boxes[:, :2].amin(dim=0))
    right, bottom = (math.ceil(float(v)) for v in boxes[:, 2:].amax(dim=0))
    across, down = _shares(boxes[:, [0, 2]], left, right), _shares(boxes[:, [1, 3]], top, bottom)
    return HeatMap((down * explanation.contributions[:, None]).T @ across, (left, top))


def _shares(ends: Tensor, first: int, last: int) -> Tensor:
    """Return the part of each interval (B, 2) in each pixel first .. last - 1: (B, pixels), rows sum to 1."""
    pixels = torch.arange(first, last, dtype=torch.float64)
    start, end = ends[:, :1], ends[:, 1:]
    shared: Tensor = (end.minimum(pixels + 1) - start.maximum(pixels)).clamp(min=0)
    return shared / (end - start)
