"""Define what a proposer takes and returns.

An image is a (3, H, W) uint8 RGB tensor. A box is (x1, y1, x2, y2) float32 in pixels of that image with x2 and y2
exclusive, so that its width is x2 - x1. This package imports nothing from `detector`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Proposals:
    """Hold the regions proposed for one image, best first.

    boxes: (R, 4) float32, xyxy, pixels, x2 and y2 exclusive, inside the image, every width and height positive.
    """

    boxes: Tensor

    def __post_init__(self) -> None:
        if self.boxes.ndim != 2 or self.boxes.shape[1] != 4 or self.boxes.dtype != torch.float32:
            got = f"{tuple(self.boxes.shape)} {self.boxes.dtype}"
            raise ValueError(f"expected boxes of shape (R, 4) and type float32, got {got}")
        if not torch.isfinite(self.boxes).all():
            raise ValueError("expected finite box coordinates, got NaN or infinity")

    def __len__(self) -> int:
        return int(self.boxes.shape[0])

    def top(self, count: int) -> Proposals:
        """Return the first `count` proposals."""
        return Proposals(self.boxes[:count])


@runtime_checkable
class Proposer(Protocol):
    """Propose regions of an image that may hold an object.

    `name` is what the command line calls it; `settings` is JSON-serialisable and names everything that shapes the
    boxes: its hash keys the caches on disk.
    """

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def __call__(self, image: Tensor, path: Path | None = None) -> Proposals:
        """Map a (3, H, W) uint8 RGB image to its proposals; at least one for every image of at least one pixel.

        path: the file of the image, by which proposers that read boxes from elsewhere find those of this image.
        """
        ...


def check_image(image: Tensor) -> None:
    """Raise ValueError unless `image` is a (3, H, W) uint8 tensor of at least one pixel."""
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8 or image.numel() == 0:
        raise ValueError(f"expected an image of shape (3, H, W) and type uint8, got {tuple(image.shape)} {image.dtype}")
