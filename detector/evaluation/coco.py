"""Measure average precision as COCO does, with COCO's own program: every number comes from pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from ..structures import Detections, GroundTruth
from .results import Result, check_lists


def coco_ap(
    detections: Sequence[Detections],
    truths: Sequence[GroundTruth],
    class_names: Sequence[str],
    areas: Sequence[Tensor] | None = None,
) -> Result:
    """Return AP averaged over IoU 0.50, 0.55 to 0.95 per class and as a mean, and COCO's twelve numbers.

    Objects flagged `difficult` are COCO's crowds. Equal scores of different images count in the order of the images,
    which for COCO itself is that of their ids (so `detector.datasets` orders them).

    areas: per image the (N,) areas in pixels that sort objects into small, medium and large (COCO: of the mask); by
    default the areas of the boxes, which are larger, so that the numbers by size then differ from COCO's own; the
    others do not depend on it.

    Raises ValueError if the lists differ in length or speak of other classes.
    """
    check_lists(detections, truths, class_names)
    if areas is None:
        areas = [(t.boxes[:, 2] - t.boxes[:, 0]) * (t.boxes[:, 3] - t.boxes[:, 1]) for t in truths]
    with contextlib.redirect_stdout(io.StringIO()):
        measure = COCOeval(
            _coco(_true_rows(truths, areas), len(truths), class_names),
            _coco(_found_rows(detections), len(truths), class_names),
            "bbox",
        )
        measure.evaluate()
        measure.accumulate()
        measure.summarize()
    # (T thresholds, R recalls, K classes, A areas, M limits): all areas, 100 detections per image
    precision = measure.eval["precision"][:, :, :, 0, -1]
    per_class = {name: _mean(precision[:, :, k]) for k, name in enumerate(class_names)}
    stats = tuple(float(value) if value > -1 else float("nan") for value in measure.stats)
    return Result(stats[0], per_class, "coco", stats)


def _mean(precision: Any) -> float:
    """Return the mean without the places that pycocotools marks with -1."""
    known = precision[precision > -1]
    return float(np.mean(known)) if known.size else float("nan")


def _coco(rows: list[dict[str, Any]], images: int, class_names: Sequence[str]) -> COCO:
    """Return pycocotools' index of some annotations; ids start at 1, since it takes 0 for `not matched`."""
    data = COCO()
    data.dataset = {
        "images": [{"id": image} for image in range(images)],
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(class_names)],
        "annotations": [{**row, "id": number} for number, row in enumerate(rows, start=1)],
    }
    data.createIndex()
    return data


def _true_rows(truths: Sequence[GroundTruth], areas: Sequence[Tensor]) -> list[dict[str, Any]]:
    return [
        {"image_id": image, "category_id": label + 1, "bbox": _xywh(box), "iscrowd": int(crowd), "area": area}
        for image, (truth, sizes) in enumerate(zip(truths, areas, strict=True))
        for box, label, crowd, area in zip(
            truth.boxes.tolist(), truth.labels.tolist(), truth.difficult.tolist(), sizes.tolist(), strict=True
        )
    ]


def _found_rows(detections: Sequence[Detections]) -> list[dict[str, Any]]:
    rows = []
    for image, found in enumerate(detections):
        for box, label, score in zip(found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True):
            bbox = _xywh(box)
            area = bbox[2] * bbox[3]
            rows.append({"image_id": image, "category_id": label + 1, "bbox": bbox, "score": score, "area": area})
    return rows


def _xywh(box: Sequence[float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]
