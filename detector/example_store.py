"""Hold the rows that support vector machines learn from: which class each serves, and how much it weighs there."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_OBJECTS = -1  # stands where the number of an image does in the keys of positives
_DTYPES = {"features": torch.float32, "signs": torch.int8, "alpha": torch.float64, "keys": torch.int64}


class ExampleStore:
    """Hold rows of features, and for which of K classes each is a positive (1), a negative (-1), or neither (0).

    The first `count` rows of these count; memory is taken page by page as rows come:
    features: (max_rows, d) float32. signs: (max_rows, K) int8. alpha: (K, max_rows) float64, the dual variables of the
    last training, 0 where a row is new. keys: (max_rows, 2) int64, image and region of a negative, -1 and a number of
    its own for a positive. scale: s of the objective (`LinearSVM`) that the dual variables belong to.
    Raises ValueError unless there is place for a row.
    """

    def __init__(self, classes: int, width: int, max_rows: int) -> None:
        if min(classes, width, max_rows) < 1:
            raise ValueError(f"expected classes, features and rows of 1 or more, got {classes}, {width}, {max_rows}")
        self.features = np.empty((max_rows, width), dtype=np.float32)
        self.signs = np.zeros((max_rows, classes), dtype=np.int8)
        self.alpha = np.zeros((classes, max_rows))
        self.keys = np.zeros((max_rows, 2), dtype=np.int64)
        self.count, self.scale = 0, 1.0
        self.next_object = 0  # the number of the next positive
        self._slots: dict[tuple[int, int], int] = {}  # of negatives

    @property
    def room(self) -> int:
        """Return how many rows can still be added."""
        return len(self.features) - self.count

    @property
    def fixed(self) -> int:
        """Return how many rows are positives, which are never forgotten."""
        return int((self.signs[: self.count] > 0).any(axis=1).sum())

    @property
    def next_image(self) -> int:
        """Return a number that is larger than that of any image in the keys."""
        return int(self.keys[: self.count, 0].max(initial=_OBJECTS)) + 1

    def add_positives(self, label: int, features: NDArray[np.float32]) -> None:
        """Add positives (P, d) of a class. Raises ValueError where that leaves no place for a negative."""
        end = self.count + len(features)
        if len(features) and end >= len(self.features):
            raise ValueError(f"expected max_rows above the {end} positives, got {len(self.features)}")
        self.features[self.count : end] = features
        self.signs[self.count : end, label] = 1
        self.keys[self.count : end, 0] = _OBJECTS
        self.keys[self.count : end, 1] = self.next_object + np.arange(len(features))
        self.next_object += len(features)
        self.count = end

    def sort_positives(self) -> None:
        """Put the positives in the order of their classes; call it before any negative is added."""
        order = np.argsort(self.signs[: self.count].argmax(axis=1), kind="stable")
        self.features[: self.count] = self.features[order]
        self.signs[: self.count] = self.signs[order]

    def known(self, image: int, regions: int) -> NDArray[np.bool_]:
        """Return which of an image's regions are kept as negatives of which class, (R, K)."""
        slots = [self._slots.get((image, region), -1) for region in range(regions)]
        return np.where(np.array(slots, dtype=np.int64)[:, None] >= 0, self.signs[slots] < 0, False)

    def add(self, image: int, features: NDArray[np.float32], wanted: NDArray[np.bool_]) -> None:
        """Add the regions of an image that are wanted as negatives of a class, (R, K); there must be room."""
        for region in np.flatnonzero(wanted.any(axis=1)).tolist():
            slot = self._slots.get((image, region))
            if slot is None:
                slot = self._slots[image, region] = self.count
                self.keys[slot] = image, region
                self.features[slot] = features[region]
                self.count += 1
            self.signs[slot, wanted[region]] = -1

    def forget(self, useless: NDArray[np.bool_]) -> None:
        """Let negatives go, (count, K); rows that serve no class give their place to the last ones."""
        self.signs[: self.count][useless] = 0
        self.alpha[:, : self.count][useless.T] = 0
        dead = np.flatnonzero(~self.signs[: self.count].any(axis=1))
        for slot in dead[::-1].tolist():
            self.count -= 1
            last = self.count
            del self._slots[self._key(slot)]
            if slot != last:
                self.features[slot], self.signs[slot] = self.features[last], self.signs[last]
                self.alpha[:, slot], self.keys[slot] = self.alpha[:, last], self.keys[last]
                if self.keys[slot, 0] != _OBJECTS:
                    self._slots[self._key(slot)] = slot
            self.signs[last], self.alpha[:, last] = 0, 0

    def take_class(self, label: int, max_rows: int) -> ExampleStore:
        """Return a store of one class with copies of its rows and place for `max_rows` in all.

        Raises ValueError for a class that is not there, or more rows than max_rows.
        """
        if not 0 <= label < len(self.alpha):
            raise ValueError(f"expected a class in [0, {len(self.alpha)}), got {label}")
        rows = np.flatnonzero(self.signs[: self.count, label])
        if len(rows) >= max_rows:
            raise ValueError(f"expected max_rows above the {len(rows)} rows of the class, got {max_rows}")
        part = ExampleStore(1, self.features.shape[1], max_rows)
        part.features[: len(rows)] = self.features[rows]
        part.signs[: len(rows), 0], part.alpha[0, : len(rows)] = self.signs[rows, label], self.alpha[label, rows]
        part.keys[: len(rows)] = self.keys[rows]
        part.count, part.scale, part.next_object = len(rows), self.scale, self.next_object
        part._index()
        return part

    def put_class(self, label: int, part: ExampleStore) -> None:
        """Replace all that a class learned from by a store of one class; other classes keep what they have.

        Rows that then serve no class go, and there is place for all that come: the store grows if it must.
        """
        self.signs[: self.count, label], self.alpha[label, : self.count] = 0, 0
        places = {self._key(slot): slot for slot in range(self.count)}
        self._reserve(self.count + sum(part._key(row) not in places for row in range(part.count)))
        for row in range(part.count):
            slot = places.get(part._key(row))
            if slot is None:
                slot, self.count = self.count, self.count + 1
                self.features[slot], self.keys[slot] = part.features[row], part.keys[row]
            self.signs[slot, label], self.alpha[label, slot] = part.signs[row, 0], part.alpha[0, row]
        self.next_object = part.next_object
        self._index()
        self.forget(np.zeros((self.count, len(self.alpha)), dtype=np.bool_))

    def to_tensors(self) -> dict[str, Tensor]:
        """Return features (n, d), signs (n, K), alpha (K, n) and keys (n, 2), views where that is possible."""
        rows = (self.features[: self.count], self.signs[: self.count], self.alpha[:, : self.count])
        names = ("features", "signs", "alpha", "keys")
        return {
            name: torch.from_numpy(part) for name, part in zip(names, (*rows, self.keys[: self.count]), strict=True)
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], scale: float, max_rows: int | None = None) -> ExampleStore:
        """Return the store whose `to_tensors` these are, with place for max_rows; default no more than there are.

        Raises ValueError for tensors that are missing, or are not what a store gives.
        """
        for name, dtype in _DTYPES.items():
            got = tensors[name].dtype if name in tensors else None
            if got != dtype or tensors[name].ndim != 2:
                raise ValueError(f"expected {name} as a matrix of {dtype}, got {got}")
        (count, width), classes = tensors["features"].shape, tensors["signs"].shape[1]
        shapes = {"signs": (count, classes), "alpha": (classes, count), "keys": (count, 2)}
        for name, shape in shapes.items():
            if tuple(tensors[name].shape) != shape:
                raise ValueError(f"expected {name} of shape {shape}, got {tuple(tensors[name].shape)}")
        if max_rows is not None and max_rows < count:
            raise ValueError(f"expected at most {max_rows} rows, got {count}")
        store = cls(classes, width, max(1, count) if max_rows is None else max_rows)
        store.count, store.scale = count, scale
        for part, name in ((store.features, "features"), (store.signs, "signs"), (store.keys, "keys")):
            part[:count] = tensors[name].numpy()
        store.alpha[:, :count] = tensors["alpha"].numpy()
        store._check()
        objects = store.keys[:count][store.keys[:count, 0] == _OBJECTS]
        store.next_object = int(objects[:, 1].max(initial=-1)) + 1
        store._index()
        return store

    def _check(self) -> None:
        """Raise ValueError unless the rows can be what machines learned from."""
        signs, alpha, keys = self.signs[: self.count], self.alpha[:, : self.count], self.keys[: self.count]
        if not 0 < self.scale < np.inf:
            raise ValueError(f"expected a positive scale, got {self.scale}")
        if not np.isin(signs, (-1, 0, 1)).all() or not signs.any(axis=1).all():
            raise ValueError("expected signs of 1, -1 and 0, and one that is not 0 in every row, got others")
        if not np.isfinite(alpha).all() or (alpha < 0).any() or alpha.T[signs == 0].any():
            raise ValueError("expected finite dual variables of 0 or more, and 0 where the sign is 0, got others")
        if not all(np.isfinite(self.features[row]).all() for row in range(self.count)):
            raise ValueError("expected finite features, got NaN or infinity")
        if len(np.unique(keys, axis=0)) != self.count or ((keys[:, 0] == _OBJECTS) != (signs > 0).any(axis=1)).any():
            raise ValueError(f"expected keys that differ, with {_OBJECTS} for positives alone, got others")

    def _key(self, slot: int) -> tuple[int, int]:
        return int(self.keys[slot, 0]), int(self.keys[slot, 1])

    def _index(self) -> None:
        """Find the negatives by their keys again."""
        keys = self.keys[: self.count].tolist()
        self._slots = {(image, region): slot for slot, (image, region) in enumerate(keys) if image != _OBJECTS}

    def _reserve(self, rows: int) -> None:
        """Get place for so many rows."""
        more = rows - len(self.features)
        if more <= 0:
            return
        features = np.empty((rows, self.features.shape[1]), dtype=np.float32)
        features[: self.count] = self.features[: self.count]
        self.features = features
        self.signs = np.pad(self.signs, ((0, more), (0, 0)))
        self.alpha = np.pad(self.alpha, ((0, 0), (0, more)))
        self.keys = np.pad(self.keys, ((0, more), (0, 0)))
