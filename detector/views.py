"""Choose what of an image a classifier looks at: its views (He et al. 2015, sections 3.1 and 3.3).

| name | what the trunk sees | views |
|---|---|--:|
| full | the whole image, its shorter side S pixels | 1 |
| crop | the central S x S pixels of the image, its shorter side 8/7 S (256 for 224) | 1 |
| warp | the whole image, warped to S x S pixels | 1 |
| ten-crop | four corners and centre, S x S pixels of an image of 8/7 S, and their mirrored pictures: 10 images | 10 |
| ten | the image once, its shorter side 8/7 S: the same ten views are cut from its map | 10 |
| many | the image at six scales, 1 to 5/2 S (224, 256, 300, 360, 448, 560): 18 views of each, of the least 6 | 96 |

A mirrored view of a map is the mirrored map: pooling it gives the same bins in mirrored order, so it costs nothing.
The paper runs the layers on the mirrored image, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .images import resize_image, scaled_size
from .structures import Size

VIEWS = ("full", "crop", "warp", "ten-crop", "ten", "many")
# The scales of the 96 views as parts of a view's side: 224, 256, 300, 360, 448 and 560 to 224 (section 3.1.5).
_MANY = (224, 256, 300, 360, 448, 560)
_SIDE = 224
_LONGEST = 8  # a picture's longer side is at most so many times the wanted shorter one


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """Describe one pass of the trunk over an image, and the views that are cut from its map.

    resized: (height, width) to which the image is resized. crop: (x1, y1, x2, y2), the part of the resized image that
    is shown. flipped: whether the picture is mirrored left to right before it is shown.
    boxes: (V, 4) float32 xyxy, the views, in pixels of the picture shown. mirrored: (V,) bool, whether the bins of a
    view are put in mirrored order.
    """

    resized: Size
    crop: tuple[int, int, int, int]
    flipped: bool
    boxes: Tensor
    mirrored: Tensor

    @property
    def size(self) -> Size:
        """Return the (height, width) of the picture shown, in pixels."""
        return self.crop[3] - self.crop[1], self.crop[2] - self.crop[0]


def show_views(image: Tensor, looks: Sequence[Look]) -> list[Tensor]:
    """Return the picture of a (3, H, W) uint8 image that each look shows, (3, *size) uint8; each size is made once."""
    resized = {size: resize_image(image, size) for size in {look.resized for look in looks}}
    pictures = []
    for look in looks:
        x1, y1, x2, y2 = look.crop
        picture = resized[look.resized][:, y1:y2, x1:x2]
        pictures.append(picture.flip(2) if look.flipped else picture)
    return pictures


def plan_views(size: Size, views: str, side: int) -> list[Look]:
    """Plan the passes of the trunk over an image of (height, width) pixels.

    views: a name of the table above. side: S, pixels of a view's side. An image so narrow that its shorter side cannot
    have the wanted length (its longer one would be over 8 times that) is shown smaller, and its views are not square.
    Raises ValueError for unknown views or a side below 1.
    """
    if views not in VIEWS:
        raise ValueError(f"expected views among {', '.join(VIEWS)}, got {views!r}")
    if side < 1:
        raise ValueError(f"expected a side of at least 1 pixel, got {side}")
    if views == "warp":
        return [_whole((side, side))]
    if views == "full":
        return [_whole(_resized(size, side))]
    larger = _resized(size, round(side * 256 / _SIDE))
    if views == "crop":
        return [_part(larger, _places(larger, side)[4], False)]
    if views == "ten-crop":
        return [_part(larger, box, flipped) for flipped in (False, True) for box in _places(larger, side)[:5]]
    if views == "ten":
        return [_cut(larger, _places(larger, side)[:5])]
    scales = [_resized(size, round(side * scale / _SIDE)) for scale in _MANY]
    return [_cut(resized, _places(resized, side)) for resized in scales]


def _resized(size: Size, shorter: int) -> Size:
    return scaled_size(size, shorter, _LONGEST * shorter)


def _places(size: Size, side: int) -> list[tuple[int, int, int, int]]:
    """Return the boxes (x1, y1, x2, y2) at the four corners, the centre and the middles of the four sides."""
    height, width = min(side, size[0]), min(side, size[1])
    low, right = size[0] - height, size[1] - width
    middle, centre = low // 2, right // 2
    corners = [(0, 0), (right, 0), (0, low), (right, low), (centre, middle)]
    sides = [(centre, 0), (centre, low), (0, middle), (right, middle)]
    return [(x, y, x + width, y + height) for x, y in corners + sides]


def _whole(size: Size) -> Look:
    return _part(size, (0, 0, size[1], size[0]), False)


def _part(resized: Size, crop: tuple[int, int, int, int], flipped: bool) -> Look:
    """Show a part of the resized image, all of which is the only view."""
    box = torch.tensor([[0.0, 0.0, crop[2] - crop[0], crop[3] - crop[1]]])
    return Look(resized, crop, flipped, box, torch.zeros(1, dtype=torch.bool))


def _cut(resized: Size, boxes: list[tuple[int, int, int, int]]) -> Look:
    """Show the whole resized image; the distinct boxes and then their mirrored selves are the views."""
    distinct = torch.tensor(list(dict.fromkeys(boxes)), dtype=torch.float32)
    mirrored = torch.arange(2 * len(distinct)) >= len(distinct)
    return Look(resized, (0, 0, resized[1], resized[0]), False, distinct.repeat(2, 1), mirrored)
