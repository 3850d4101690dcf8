"""Encode and decode boxes as regression targets, and project boxes onto feature maps; the rest is torchvision.ops."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .structures import FeatureMap

# Standard deviations of (tx, ty, tw, th) over matched proposals (Girshick 2015, Fast R-CNN code).
DELTA_STD = (0.1, 0.1, 0.2, 0.2)
_LARGEST_LOG_SIDE = math.log(1000 / 16)

# Targets in units of the box itself, as R-CNN's ridge regressors learn them.
UNIT_STD = (1.0, 1.0, 1.0, 1.0)

PROJECTIONS = ("nearest", "inside", "paper", "code")
# Pixels of the resized image by which the released code moves every side inward before it rounds. They belong to a
# stride of 16; the code has no other.
SHRINK = 6.5

Four = tuple[float, float, float, float]


def encode(boxes: Tensor, targets: Tensor, std: Four = DELTA_STD) -> Tensor:
    """Express target boxes relative to boxes (Girshick et al. 2014, appendix C), divided by `std`.

    boxes, targets: (R, 4) float32 or float64 xyxy of positive width and height. Returns (R, 4): (tx, ty, tw, th).
    """
    centre, size = _centre_size(boxes)
    target_centre, target_size = _centre_size(targets)
    deltas = torch.cat([(target_centre - centre) / size, torch.log(target_size / size)], dim=-1)
    return deltas / deltas.new_tensor(std)


def decode(boxes: Tensor, deltas: Tensor, std: Four = DELTA_STD) -> Tensor:
    """Apply deltas to boxes; the inverse of `encode` with the same `std`.

    boxes: (R, 4) xyxy, deltas: (R, 4) or (R, K, 4). Returns the shape of deltas. Sides grow at most 62.5-fold.
    """
    if deltas.ndim == 3:
        boxes = boxes[:, None]
    scaled = deltas * deltas.new_tensor(std)
    centre, size = _centre_size(boxes)
    new_centre = centre + scaled[..., :2] * size
    half = size * torch.exp(scaled[..., 2:].clamp(max=_LARGEST_LOG_SIDE)) / 2
    return torch.cat([new_centre - half, new_centre + half], dim=-1)


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + size / 2, size


def coverage(windows: Tensor, source: FeatureMap, target: FeatureMap) -> Tensor:
    """Return the part of every cell of `target` in the mean over windows of whole cells of `source`.

    windows: (R, 4) cells x1, y1, x2, y2, exclusive, not empty. A cell covers the square of one stride around its
    centre, cells at the border also what lies beyond. Returns (R, h * w) float64, every row sums to 1.
    """
    parts = []
    for axis in (1, 0):
        edges = source.offsets[axis] + source.stride * (windows[:, [1 - axis, 3 - axis]].double() - 0.5)
        first, last = ((edges - target.offsets[axis]) / target.stride + 0.5).unbind(1)
        borders = torch.arange(target.values.shape[1 + axis] + 1, dtype=torch.float64, device=windows.device)
        borders[0], borders[-1] = -math.inf, math.inf
        shared = last[:, None].minimum(borders[1:]) - first[:, None].maximum(borders[:-1])
        parts.append(shared.clamp(min=0) / (last - first)[:, None])
    across, down = parts
    return (down[:, :, None] * across[:, None, :]).flatten(1)


def project(boxes: Tensor, feature_map: FeatureMap, rule: str = "nearest") -> Tensor:
    """Project boxes of the original image onto whole cells of a map.

    A box's first pixel x1 and last pixel x2 - 1, on the resized image, become u = (x - offset) / S in cells, S being
    the stride. Per side, with the map's own offset in the place of the one that a formula was written for:

    - `nearest`: floor(u + 1/2) and floor(v + 1/2), the cells whose centres are nearest to the two pixels (He et al.
      2015, appendix A, in words).
    - `inside`: ceil(u) and floor(v), the cells whose centres lie between them or on them.
    - `paper`: floor(u) + 1 and ceil(v) - 1 (He et al. 2015, appendix A, in symbols), the cells whose centres lie
      strictly between them. The paper pads every layer with floor(k / 2), which centres cell 0 on pixel 0, and asks
      for "a proper offset" otherwise.
    - `code`: floor(u + SHRINK / S + 1/2) and ceil(v - SHRINK / S - 1/2) (the authors' released code, spm_pool), the
      cells nearest to the two pixels after both moved inward by SHRINK.

    boxes: (R, 4) float32 xyxy pixels, x2 and y2 exclusive. A box without a cell of its own gets the one nearest to its
    centre; with `code`, the one in the middle of its crossed ends, the first of two. Then the ends are clamped.
    Returns (R, 4) int64 cells (x1, y1, x2, y2), x2 and y2 exclusive, not empty and inside the map.
    Raises ValueError for an unknown rule.
    """
    if rule not in PROJECTIONS:
        raise ValueError(f"expected a projection among {', '.join(PROJECTIONS)}, got {rule!r}")
    height, width = feature_map.values.shape[1:]
    scale_y, scale_x = feature_map.scale
    scale = boxes.new_tensor([scale_x, scale_y], dtype=torch.float64)
    offset = torch.tensor(feature_map.offsets[::-1], dtype=torch.float64, device=boxes.device)
    first = (boxes[:, :2].double() * scale - offset) / feature_map.stride
    last = (boxes[:, 2:].double() * scale - 1 - offset) / feature_map.stride
    start, end = _ends(first, last, rule, SHRINK / feature_map.stride)
    crossed = torch.floor((start + end) / 2) if rule == "code" else torch.floor((first + last) / 2 + 0.5)
    empty = end < start
    start, end = torch.where(empty, crossed, start), torch.where(empty, crossed, end)
    limit = torch.tensor([width - 1, height - 1], dtype=torch.float64, device=boxes.device)
    start, end = start.clamp(min=0).minimum(limit), end.clamp(min=0).minimum(limit)
    return torch.cat([start, end + 1], dim=1).long()


def _ends(first: Tensor, last: Tensor, rule: str, shrink: float) -> tuple[Tensor, Tensor]:
    """Round a box's first and last pixel, in cells, to its first and last cell; they cross where it has none."""
    if rule == "nearest":
        return torch.floor(first + 0.5), torch.floor(last + 0.5)
    if rule == "inside":
        return torch.ceil(first), torch.floor(last)
    if rule == "paper":
        return torch.floor(first) + 1, torch.ceil(last) - 1
    return torch.floor(first + shrink + 0.5), torch.ceil(last - shrink - 0.5)
