"""Turn results into the formats of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .structures import Detections


def coco_results(
    detections: Detections, image_id: int | str, category_ids: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Return detections in COCO's results format, `[{"image_id", "category_id", "bbox", "score"}, ...]`.

    bbox is [x, y, width, height] in pixels. `category_ids` holds one id per class, in the order of `class_names`;
    by default the id is label + 1, since COCO numbers its categories from 1. Raises ValueError if their number
    differs from that of the classes.
    """
    names = detections.class_names
    ids = range(1, len(names) + 1) if category_ids is None else category_ids
    if len(ids) != len(names):
        raise ValueError(f"expected {len(names)} category ids, one per class, got {len(ids)}")
    rows = zip(detections.labels.tolist(), detections.scores.tolist(), detections.boxes.tolist(), strict=True)
    return [
        {"image_id": image_id, "category_id": int(ids[label]), "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for label, score, (x1, y1, x2, y2) in rows
    ]


def supervision_detections(detections: Detections) -> Any:
    """Return `supervision.Detections` with xyxy boxes, confidence, class ids and `data["class_name"]`.

    Raises ImportError with the command that installs the package if it is missing.
    """
    try:
        import supervision
    except ImportError as error:
        raise ImportError("to_supervision needs the package supervision: pip install supervision") from error
    import numpy as np

    labels = detections.labels.cpu().numpy().astype(int)
    names = np.array([detections.class_names[label] for label in labels], dtype=str)
    boxes, scores = detections.boxes.cpu().numpy(), detections.scores.cpu().numpy()
    return supervision.Detections(xyxy=boxes, confidence=scores, class_id=labels, data={"class_name": names})
