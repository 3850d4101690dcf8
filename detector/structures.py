"""State the conventions of the package and define its value types.

- image: (3, H, W) uint8 RGB tensor, upright (EXIF rotation applied). Normalisation belongs to the trunk that needs it.
- box: (x1, y1, x2, y2) float32, pixels of the original image, x2 and y2 **exclusive**: width is x2 - x1. The `+ 1` of
  inclusive formats appears only where such formats are read or written (VOC XML is 1-based and inclusive).
- sizes are (height, width). A label is an int64 in [0, K) for K classes; K itself means background.
- R regions, C channels, K classes, H W image, h w feature map. Plural names carry a batch axis.
- value types are frozen, compare by identity and are checked once, when they are made.
- randomness comes from an explicit torch or numpy Generator whose seed is in the config.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from proposals.structures import Proposals

Size = tuple[int, int]


def check_boxes(boxes: Tensor, what: str = "boxes", exact: bool = False) -> None:
    """Raise ValueError unless `boxes` is (R, 4) float32, or float64 if it may be `exact`, with finite coordinates."""
    known = (torch.float32, torch.float64) if exact else (torch.float32,)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype not in known:
        raise ValueError(f"expected {what} of shape (R, 4) and type float32, got {tuple(boxes.shape)} {boxes.dtype}")
    if not torch.isfinite(boxes).all():
        raise ValueError(f"expected finite {what}, got NaN or infinity")


@dataclass(frozen=True, slots=True, eq=False)
class FeatureMap:
    """Hold one convolutional feature map of one image, and where its cells lie on that image.

    values: (C, h, w) float32 (float16 on disk). Cell (i, j) is centred on pixel
    ((offset_x + stride * j) / scale_x, (offset_y + stride * i) / scale_y) of the original image.
    stride, offset: pixels of the resized image; an offset of two numbers is (y, x), a single one stands for both.
    scale: (resized height / height, resized width / width).
    """

    values: Tensor
    stride: int
    offset: float | tuple[float, float]
    scale: tuple[float, float]

    def __post_init__(self) -> None:
        if self.values.ndim != 3:
            raise ValueError(f"expected map values of shape (C, h, w), got {tuple(self.values.shape)}")
        if self.stride < 1 or min(self.scale) <= 0:
            raise ValueError(f"expected a positive stride and scale, got {self.stride} and {self.scale}")

    @property
    def offsets(self) -> tuple[float, float]:
        """Return the offset in y and in x."""
        return self.offset if isinstance(self.offset, tuple) else (self.offset, self.offset)

    def to(self, device: torch.device | str) -> FeatureMap:
        """Return the map on a device."""
        return self.with_values(self.values.to(device))

    def with_values(self, values: Tensor) -> FeatureMap:
        """Return a map of other values whose cells lie where those of this one do."""
        return FeatureMap(values, self.stride, self.offset, self.scale)


@dataclass(frozen=True, slots=True, eq=False)
class GroundTruth:
    """Hold the annotated objects of one image.

    boxes: (N, 4) float32, or float64 to measure exactly what a file says. labels: (N,) int64 in [0, K).
    difficult: (N,) bool (VOC's flag; COCO's iscrowd). size: (height, width) of the image in pixels.
    """

    boxes: Tensor
    labels: Tensor
    difficult: Tensor
    size: Size

    def __post_init__(self) -> None:
        check_boxes(self.boxes, exact=True)
        count = self.boxes.shape[0]
        if self.labels.shape != (count,) or self.labels.dtype != torch.int64:
            raise ValueError(f"expected {count} int64 labels, got {tuple(self.labels.shape)} {self.labels.dtype}")
        if self.difficult.shape != (count,) or self.difficult.dtype != torch.bool:
            raise ValueError(f"expected {count} bool flags, got {tuple(self.difficult.shape)} {self.difficult.dtype}")

    def __len__(self) -> int:
        return int(self.boxes.shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """Hold the objects found in one image, highest score first.

    boxes: (D, 4) float32. scores: (D,) float32 in [0, 1]. Both are float64 where a file gave them, to be exact.
    labels: (D,) int64 in [0, K). size: (height, width). class_names: K names. image: the (3, H, W) uint8 image itself
    if it was kept, for drawing. order: (D,) int64, the place of each in the file it was read from, which decides
    between equal scores of different images; None: images count in their order.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    size: Size
    class_names: tuple[str, ...]
    image: Tensor | None = None
    order: Tensor | None = None

    def __post_init__(self) -> None:
        check_boxes(self.boxes, exact=True)
        count = self.boxes.shape[0]
        if self.scores.shape != (count,) or self.labels.shape != (count,):
            raise ValueError(f"expected {count} scores and labels, got {self.scores.shape} and {self.labels.shape}")
        if count and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.class_names):
            raise ValueError(f"expected labels in [0, {len(self.class_names)}), got {self.labels.tolist()}")
        if self.order is not None and self.order.shape != (count,):
            raise ValueError(f"expected {count} places in the file, got {tuple(self.order.shape)}")

    def __len__(self) -> int:
        return int(self.boxes.shape[0])

    def above(self, score: float) -> Detections:
        """Return the detections with at least this score."""
        keep = self.scores >= score
        boxes, scores, labels = self.boxes[keep], self.scores[keep], self.labels[keep]
        order = None if self.order is None else self.order[keep]
        return Detections(boxes, scores, labels, self.size, self.class_names, self.image, order)

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return `[{"label": name, "score": float, "box": [x1, y1, x2, y2]}, ...]`, ready for JSON."""
        rows = zip(self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        return [
            {"label": self.class_names[label], "score": round(score, 5), "box": [round(v, 2) for v in box]}
            for label, score, box in rows
        ]

    def to_coco(self, image_id: int | str, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Return COCO results: boxes as [x, y, width, height]; category ids default to label + 1."""
        from .export import coco_results

        return coco_results(self, image_id, category_ids)

    def to_supervision(self) -> Any:
        """Return `supervision.Detections`; raises ImportError with the command to install it if it is missing."""
        from .export import supervision_detections

        return supervision_detections(self)

    def _repr_png_(self) -> bytes | None:
        """Show the picture with its boxes in a notebook; None if the image was not kept."""
        if self.image is None:
            return None
        from .drawing import draw_detections, encode_png

        return encode_png(draw_detections(self.image, self))


@dataclass(frozen=True, slots=True, eq=False)
class BoxScores:
    """Hold what the classifier says of boxes that the user brought, in the user's order.

    boxes: (R, 4) float32 as given. probabilities: (R, K + 1) float32, rows sum to 1, the last column is background.
    refined: (R, 4) float32, each box corrected by the regressor of its most probable class.
    """

    boxes: Tensor
    probabilities: Tensor
    refined: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return int(self.boxes.shape[0])

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return one dict per box: its most probable class, that score, the boxes, all probabilities by name."""
        names = (*self.class_names, "background")
        rows = []
        for box, refined, row in zip(
            self.boxes.tolist(), self.refined.tolist(), self.probabilities.tolist(), strict=True
        ):
            best = max(range(len(self.class_names)), key=row.__getitem__)
            rows.append(
                {
                    "label": names[best],
                    "score": round(row[best], 5),
                    "box": [round(v, 2) for v in box],
                    "refined": [round(v, 2) for v in refined],
                    "probabilities": {name: round(p, 5) for name, p in zip(names, row, strict=True)},
                }
            )
        return rows


@dataclass(slots=True)
class Seconds:
    """Collect the wall-clock seconds that each stage of one prediction took."""

    stages: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, seconds: float) -> None:
        """Add to a stage."""
        self.stages[stage] = self.stages.get(stage, 0.0) + seconds


class Detector(Protocol):
    """Find objects in an image, given proposals."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def predict(self, image: Tensor, proposals: Proposals, seconds: Seconds | None = None) -> Detections: ...

    def predict_boxes(self, image: Tensor, boxes: Tensor, seconds: Seconds | None = None) -> BoxScores: ...
