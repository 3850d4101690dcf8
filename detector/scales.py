"""Hold the maps of one image at one scale or several, and choose the scale at which each region is looked at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .boxes import project
from .structures import FeatureMap, Size

RULES = ("area", "side")
SIDE = 224  # pixels of the square that a region should look like
CODE_SIDE = 13 * 16  # the same in the authors' code: cells of conv5 times their stride


@dataclass(frozen=True, slots=True, eq=False)
class FeaturePyramid:
    """Hold the maps of one image, one level per scale, smallest first.

    fine: the maps that are pooled. coarse: those whose means describe regions, as many, or none where nothing reads
    them (`region_mean` off). size: (height, width) of the image.
    """

    fine: tuple[FeatureMap, ...]
    coarse: tuple[FeatureMap, ...]
    size: Size

    def to(self, device: torch.device | str) -> FeaturePyramid:
        """Return the same maps on a device."""
        fine, coarse = (tuple(m.to(device) for m in maps) for maps in (self.fine, self.coarse))
        return FeaturePyramid(fine, coarse, self.size)

    def locate(self, boxes: Tensor, rule: str, projection: str) -> tuple[Tensor, Tensor]:
        """Find the windows of (R, 4) boxes, each on the level that `rule` chooses (`choose_levels`).

        projection: how a box becomes whole cells (`boxes.project`). Returns the distinct windows (D, 5) int64, level
        and cells x1, y1, x2, y2, in ascending order, and the row of each box among them (R,).
        """
        return self.place(boxes, choose_levels(boxes, self, rule), projection)

    def place(self, boxes: Tensor, levels: Tensor, projection: str) -> tuple[Tensor, Tensor]:
        """Find the windows of (R, 4) boxes, as `locate` does, each on a level (R,) int64 that is given."""
        windows = torch.zeros(len(boxes), 5, dtype=torch.int64, device=boxes.device)
        windows[:, 0] = levels
        for level, fine in enumerate(self.fine):
            chosen = levels == level
            windows[chosen, 1:] = project(boxes[chosen], fine, projection)
        return unique_rows(windows)


def unique_rows(windows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct rows of (R, 5) small non-negative int64 numbers, ascending, and where each row is there.

    Five numbers are packed into one first: sorting numbers is several times as fast as sorting rows.
    """
    if len(windows) == 0:
        return windows, windows.new_zeros(0)
    if int(windows.max()) >= 1 << 12:
        found = torch.unique(windows, dim=0, return_inverse=True)
        return found[0], found[1]
    shifts = torch.arange(48, -1, -12, device=windows.device)
    packed, rows = torch.unique((windows << shifts).sum(dim=1), return_inverse=True)
    return packed[:, None] >> shifts & 0xFFF, rows


def choose_levels(boxes: Tensor, pyramid: FeaturePyramid, rule: str) -> Tensor:
    """Choose the level of each of (R, 4) boxes: (R,) int64. The first level wins a tie.

    `area`: where the resized box has a number of pixels nearest to 224 x 224 (He et al. 2015, section 4.1).
    `side`: whose shorter side of the image is nearest to the one, a whole number, at which the box would have as many
    pixels as a square of 208, as the authors' released code chooses (spm_expected_scale). Raises ValueError for another
    rule.
    """
    if rule not in RULES:
        raise ValueError(f"expected a rule for scales among {', '.join(RULES)}, got {rule!r}")
    if len(pyramid.fine) == 1:
        return torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    scales = torch.tensor([m.scale for m in pyramid.fine], dtype=torch.float64, device=boxes.device)
    areas = (boxes[:, 2:].double() - boxes[:, :2].double()).prod(dim=1)[:, None]
    if rule == "area":
        return (areas * scales.prod(dim=1) - SIDE**2).abs().argmin(dim=1)
    sides = min(pyramid.size) * scales.prod(dim=1).sqrt()
    wanted = torch.floor(CODE_SIDE * min(pyramid.size) / areas.sqrt() + 0.5)  # rounds as MATLAB does
    return (sides - wanted).abs().argmin(dim=1)
