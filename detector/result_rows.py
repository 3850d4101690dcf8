"""Hold detections as the rows of a file, and sort them into the images of a data set and back."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .datasets import Dataset
from .structures import Detections

Array = np.ndarray[Any, np.dtype[Any]]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class ResultRows:
    """Hold detections of many images in the order of their file.

    images: (N,) int64, indices into the samples of a data set, -1 for an image that it lacks. labels: (N,) int64 in
    [0, K), -1 for a class that it lacks. boxes: (N, 4) float64, xyxy in pixels. scores: (N,) float64, any finite ones.
    """

    images: Array
    labels: Array
    boxes: Array
    scores: Array

    def __len__(self) -> int:
        return len(self.images)

    def to_detections(self, dataset: Dataset) -> list[Detections]:
        """Return the detections of every image, best score first, equal ones in the order of the file.

        Rows of images and classes that the data set lacks are left out, but count in `order`.
        """
        places = np.flatnonzero((self.images >= 0) & (self.labels >= 0))
        places = places[np.lexsort((-self.scores[places], self.images[places]))]
        edges = np.searchsorted(self.images[places], np.arange(len(dataset) + 1))
        found = []
        for sample, start, stop in zip(dataset, edges[:-1], edges[1:], strict=True):
            mine = places[start:stop]
            boxes, scores, labels = self.boxes[mine], self.scores[mine], self.labels[mine]
            own = Detections(
                torch.from_numpy(boxes),
                torch.from_numpy(scores),
                torch.from_numpy(labels),
                sample.truth.size,
                dataset.class_names,
                order=torch.from_numpy(mine.copy()),
            )
            found.append(own)
        return found


def make_rows(images: Sequence[int], labels: Sequence[int], boxes: Any, scores: Any) -> ResultRows:
    """Return rows of what lists hold, which may be empty."""
    return ResultRows(
        np.array(images, dtype=np.int64),
        np.array(labels, dtype=np.int64),
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(scores, dtype=np.float64),
    )


def join_rows(parts: Sequence[ResultRows]) -> ResultRows:
    """Return the rows of several files as those of one."""
    parts = [make_rows([], [], [], []), *parts]
    columns = [[getattr(part, name) for part in parts] for name in ("images", "labels", "boxes", "scores")]
    return ResultRows(*map(np.concatenate, columns))


def from_detections(detections: Sequence[Detections], dataset: Dataset) -> ResultRows:
    """Return the rows of all images: by their `order` if all have one, else image by image, as they are.

    Raises ValueError unless there is one Detections per sample, of the data set's classes, with finite scores and
    x1 <= x2, y1 <= y2 in every box: no reader would take the file.
    """
    if len(detections) != len(dataset):
        raise ValueError(f"expected detections of {len(dataset)} images, one per sample, got {len(detections)}")
    for found in detections:
        if tuple(found.class_names) != dataset.class_names:
            wanted, got = ", ".join(dataset.class_names), ", ".join(found.class_names)
            raise ValueError(f"expected detections of the classes {wanted}, got {got}")
    parts = [
        ResultRows(
            np.full(len(found), index),
            found.labels.cpu().numpy(),
            found.boxes.detach().cpu().numpy().astype(np.float64),
            found.scores.detach().cpu().numpy().astype(np.float64),
        )
        for index, found in enumerate(detections)
    ]
    rows = join_rows(parts)
    wrong = ~np.isfinite(rows.scores) | (rows.boxes[:, 2:] < rows.boxes[:, :2]).any(axis=1)
    if wrong.any():
        place = int(wrong.argmax())
        got = f"{rows.boxes[place].tolist()} with the score {float(rows.scores[place])}"
        image = dataset[int(rows.images[place])].path
        raise ValueError(f"{image}: expected boxes with x1 <= x2, y1 <= y2 and a finite score, got {got}")
    orders = [found.order.cpu().numpy() for found in detections if len(found) and found.order is not None]
    if sum(map(len, orders)) < len(rows) or not orders:
        return rows
    first = np.argsort(np.concatenate(orders), kind="stable")
    return ResultRows(rows.images[first], rows.labels[first], rows.boxes[first], rows.scores[first])


def check_images(images: Array, names: Sequence[object], source: Path) -> None:
    """Log how many detections are of images that the data set lacks; raise ValueError if all are.

    images: (N,) indices of samples, -1 for none; names: what the file calls them.
    """
    strange = np.flatnonzero(images < 0)
    if not len(strange):
        return
    example = f"{names[int(strange[0])]!r:.80}"
    if len(strange) == len(images):
        raise ValueError(f"{source}: expected detections in images of the data set, got none, only {example} and such")
    _log.warning(
        "%s: %d of %d detections are of images that the data set lacks, such as %s: ignored",
        source,
        len(strange),
        len(images),
        example,
    )
