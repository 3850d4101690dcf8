"""Drop near-duplicate negatives: regions of one image that would teach the same twice (He et al. 2015, section 4.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import nms

DUPLICATES = ("paper", "cells", "none")


def drop_near_duplicates(boxes: NDArray[np.float32], overlap: float = 0.7) -> NDArray[np.int64]:
    """Return the rows to keep, ascending: one goes if its IoU with a kept one before it is more than `overlap`.

    boxes: (R, 4) xyxy, best first. "Any negative sample is removed if it overlaps another negative sample by more than
    70%" (He et al. 2015, section 4.1).
    """
    table = torch.from_numpy(np.asarray(boxes, dtype=np.float32).reshape(-1, 4))
    ranks = torch.arange(len(table), 0, -1, dtype=torch.float32)
    kept: NDArray[np.int64] = nms(table, ranks, overlap).sort().values.numpy()
    return kept


def distinct_negatives(
    regions: NDArray[Any] | None, negatives: NDArray[np.bool_], duplicates: str = "paper"
) -> NDArray[np.bool_]:
    """Return the mask (R, K) of negatives without near duplicates among the negatives of the same class.

    duplicates: "paper": `drop_near_duplicates` of boxes, best first; "cells": of equal windows of cells the first is
    kept, as in the authors' code; "none": all are. Raises ValueError if regions (R, 4) are needed and missing.
    """
    if duplicates == "none":
        return negatives
    if regions is None or np.shape(regions) != (len(negatives), 4):
        raise ValueError(
            f"expected regions of shape ({len(negatives)}, 4) to drop duplicates by {duplicates}, got "
            f"{None if regions is None else np.shape(regions)}"
        )
    distinct = np.zeros_like(negatives)
    # all classes that are absent from an image have the same negatives
    masks, which = np.unique(negatives, axis=1, return_inverse=True)
    for number, mask in enumerate(masks.T):
        rows = np.flatnonzero(mask)
        if duplicates == "cells":
            kept = np.sort(np.unique(regions[rows], axis=0, return_index=True)[1])
        else:
            kept = drop_near_duplicates(regions[rows])
        distinct[np.ix_(rows[kept], which.reshape(-1) == number)] = True
    return distinct
