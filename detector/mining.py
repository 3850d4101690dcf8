"""Mine hard negatives for one-vs-rest support vector machines (Girshick et al. 2014; He et al. 2015, section 4.1).

The images are visited once, in their order. A class takes all negatives of the first image that has any, is trained,
and from then on takes those alone that its machine scores above a threshold. When enough are new it is trained again,
from where it stood, and forgets those that have become easy. The hinge loss does not see a negative below -1, so
passes over all images until no new one is hard give the machine that training on all negatives would have given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dual_descent import inner_products
from .duplicates import DUPLICATES, distinct_negatives
from .svm import LinearSVM, feature_matrix, norm_factor


@dataclass(frozen=True, slots=True)
class MiningRule:
    """Say which negatives are kept and when a class is trained; the defaults are those of R-CNN's code.

    hard_threshold: a negative that scores more is hard. evict_threshold: after training, one that scores less is
    forgotten. retrain_limit: a class with more new negatives than this is trained. epochs: most passes over the images;
    they end with a pass that finds nothing new. max_rows: most rows kept, positives and the negatives of all classes
    together, a row once however many classes it serves: 4 max_rows d bytes. When they are full, the negatives that
    score lowest make place.
    duplicates: how near-duplicate negatives of an image are dropped, see `duplicates.distinct_negatives`.
    """

    hard_threshold: float = -1.0001
    evict_threshold: float = -1.2
    retrain_limit: int = 2000
    epochs: int = 1
    max_rows: int = 50_000
    duplicates: str = "paper"

    def __post_init__(self) -> None:
        if not self.evict_threshold <= self.hard_threshold:
            raise ValueError(
                f"expected an evict_threshold of at most hard_threshold, got {self.evict_threshold} and "
                f"{self.hard_threshold}"
            )
        if min(self.retrain_limit, self.epochs, self.max_rows) < 1:
            raise ValueError(
                f"expected retrain_limit, epochs and max_rows of 1 or more, got {self.retrain_limit}, {self.epochs}, "
                f"{self.max_rows}"
            )
        if self.duplicates not in DUPLICATES:
            raise ValueError(f"expected duplicates to be one of {', '.join(DUPLICATES)}, got {self.duplicates}")


@dataclass(frozen=True, slots=True, eq=False)
class ImageRegions:
    """Hold the regions of one image as the miner wants them.

    features: (R, d) float32. negatives: (R, K) bool, which region is a negative of which class (IoU with its objects at
    most 0.3 in the paper). regions: (R, 4) boxes in pixels or windows of whole cells, to find near duplicates; None if
    none are to be dropped.
    """

    features: NDArray[np.float32]
    negatives: NDArray[np.bool_]
    regions: NDArray[Any] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class MiningReport:
    """Tell what happened, for K classes: (K,) int64 negatives added, forgotten, kept at the end, and trainings.

    crowded: how many negatives left because max_rows was reached. epochs: passes made.
    """

    added: NDArray[np.int64]
    evicted: NDArray[np.int64]
    kept: NDArray[np.int64]
    trainings: NDArray[np.int64]
    crowded: int
    epochs: int


def scale_features(sample: Iterable[NDArray[np.float32]], norm: float = 20.0) -> float:
    """Return the factor that gives the features (R, d) of some images this mean norm; raises ValueError for none."""
    rows = [feature_matrix(features) for features in sample if len(features)]
    if not rows:
        raise ValueError("expected at least one region to measure the norm of features, got none")
    return norm_factor(np.concatenate(rows), norm)


def mine(
    images: Iterable[ImageRegions],
    positives: Mapping[Any, NDArray[np.float32]],
    svm: LinearSVM,
    rule: MiningRule | None = None,
    scale: float | None = None,
    report: Callable[[int], None] | None = None,
) -> MiningReport:
    """Train `svm` on all positives and on the hard negatives of the images; it is then as after `fit`.

    images: visited in their order, once per epoch; made anew by each `iter` if there are several epochs.
    positives: of every class, in the order of the columns of the negatives, its features (P_k, d) float32. They are
    no examples for the other classes.
    scale: s of the objective, `scale_features` of a sample of images in R-CNN; default svm.feature_norm over the mean
    norm of the positives, or 1 if that is None. It becomes part of coef_, which acts on raw features.
    report: is called with 1 after every image.
    Raises ValueError for a class without a positive or that met no negative, for shapes that do not fit, and where
    max_rows leaves no place for negatives. Warns as `fit` does.
    """
    rule = rule or MiningRule()
    if rule.epochs > 1 and iter(images) is images:
        raise ValueError(f"expected images that can be visited {rule.epochs} times, got an iterator")
    miner = _Miner(positives, svm, rule, scale)
    epochs, grown = 0, True
    while grown and epochs < rule.epochs:
        before = int(miner.added.sum())
        for index, image in enumerate(images):
            miner.visit(index, image)
            if report is not None:
                report(1)
        miner.train(np.flatnonzero(miner.new > 0))
        grown = int(miner.added.sum()) > before
        epochs += 1
    return miner.finish(epochs)


class _Cache:
    """Hold rows of features, and for which class each is a positive (1), a negative (-1), or neither (0)."""

    def __init__(self, positives: Sequence[NDArray[np.float32]], max_rows: int) -> None:
        self.count = self.fixed = sum(len(rows) for rows in positives)
        if self.count >= max_rows:
            raise ValueError(f"expected max_rows above the {self.count} positives, got {max_rows}")
        # memory is taken page by page as rows come
        self.features = np.empty((max_rows, positives[0].shape[1]), dtype=np.float32)
        self.signs = np.zeros((max_rows, len(positives)), dtype=np.int8)
        self.alpha = np.zeros((len(positives), max_rows))
        self._keys: list[tuple[int, int]] = [(-1, number) for number in range(self.count)]
        self._slots: dict[tuple[int, int], int] = {}
        self.features[: self.count] = np.concatenate(positives)
        self.signs[np.arange(self.count), np.repeat(np.arange(len(positives)), [len(p) for p in positives])] = 1

    @property
    def room(self) -> int:
        """Return how many rows can still be added."""
        return len(self.features) - self.count

    def known(self, image: int, regions: int) -> NDArray[np.bool_]:
        """Return which of an image's regions are kept as negatives of which class, (R, K)."""
        slots = [self._slots.get((image, region), -1) for region in range(regions)]
        return np.where(np.array(slots, dtype=np.int64)[:, None] >= 0, self.signs[slots] < 0, False)

    def add(self, image: int, features: NDArray[np.float32], wanted: NDArray[np.bool_]) -> None:
        """Add the regions of an image that are wanted for a class, (R, K); there must be room."""
        for region in np.flatnonzero(wanted.any(axis=1)).tolist():
            slot = self._slots.get((image, region))
            if slot is None:
                slot = self._slots[image, region] = self.count
                self._keys.append((image, region))
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
            del self._slots[self._keys[slot]]
            key = self._keys.pop()
            if slot != last:
                self.features[slot], self.signs[slot] = self.features[last], self.signs[last]
                self.alpha[:, slot] = self.alpha[:, last]
                self._keys[slot], self._slots[key] = key, slot
            self.signs[last], self.alpha[:, last] = 0, 0


class _Miner:
    """Go from image to image with a cache and the machines trained on it so far."""

    def __init__(
        self, positives: Mapping[Any, NDArray[np.float32]], svm: LinearSVM, rule: MiningRule, scale: float | None
    ) -> None:
        self.names, self.svm, self.rule = list(positives), svm, rule
        rows = [feature_matrix(features) for features in positives.values()]
        if not rows or len({features.shape[1] for features in rows}) != 1:
            raise ValueError(
                f"expected positives of one length for every class, got {[features.shape for features in rows]}"
            )
        if scale is None:
            scale = 1.0 if svm.feature_norm is None else norm_factor(np.concatenate(rows), svm.feature_norm)
        self.scale = scale
        # beginning where the last training stood is worth more than inner products made anew
        self.solver = replace(svm, solver="rows" if svm.solver == "auto" else svm.solver)
        self.cache = _Cache(rows, rule.max_rows)
        count, columns = len(rows), rows[0].shape[1]
        self.coef, self.intercept = np.zeros((count, columns), np.float32), np.zeros(count, np.float32)
        self.objective, self.gap = np.full(count, np.inf), np.full(count, np.inf)
        self.added, self.new, self.evicted, self.trainings, self.sweeps = np.zeros((5, count), dtype=np.int64)
        self.crowded = 0

    def visit(self, index: int, image: ImageRegions) -> None:
        """Add the hard negatives of an image; train the classes that are due."""
        shape = (len(image.features), len(self.coef))
        if image.negatives.shape != shape or image.negatives.dtype != np.bool_:
            raise ValueError(f"expected bool negatives of shape {shape}, got {image.negatives.shape}")
        if not len(image.features):
            return
        features = feature_matrix(image.features)
        if features.shape[1] != self.coef.shape[1]:
            raise ValueError(f"expected {self.coef.shape[1]} features as the positives have, got {features.shape[1]}")
        scores = inner_products(features, self.coef) + self.intercept
        wanted = (scores > self.rule.hard_threshold) | (self.trainings == 0)
        wanted &= distinct_negatives(image.regions, image.negatives, self.rule.duplicates)
        wanted &= ~self.cache.known(index, len(features))
        self._make_room(scores, wanted)
        self.cache.add(index, features, wanted)
        self.new += wanted.sum(axis=0)
        self.added += wanted.sum(axis=0)
        first = (self.trainings == 0) & (self.new > 0)
        self.train(np.flatnonzero(first | (self.new > self.rule.retrain_limit)))

    def train(self, classes: NDArray[np.int64]) -> None:
        """Train some classes on the cache, from where they stood, and forget their easy negatives."""
        if not len(classes):
            return
        rows = self.cache.count
        features, signs = self.cache.features[:rows], self.cache.signs[:rows]
        found = self.solver.solve(features, signs[:, classes], self.cache.alpha[classes, :rows], self.scale)
        self.coef[classes], self.intercept[classes] = found.coef, found.intercept
        self.objective[classes], self.gap[classes], self.sweeps[classes] = found.objective, found.gap, found.sweeps
        self.cache.alpha[classes, :rows] = found.alpha
        easy = np.zeros(signs.shape, dtype=np.bool_)
        scores = inner_products(features, found.coef) + found.intercept
        easy[:, classes] = (signs[:, classes] < 0) & (scores < self.rule.evict_threshold)
        self.evicted += easy.sum(axis=0)
        self.cache.forget(easy)
        self.new[classes] = 0
        self.trainings[classes] += 1

    def _make_room(self, scores: NDArray[np.float64], wanted: NDArray[np.bool_]) -> None:
        """Let the lowest negatives go, in the cache (a tenth at least) and then in `wanted`, if they are too many."""
        missing = int(wanted.any(axis=1).sum()) - self.cache.room
        if missing <= 0:
            return
        rows, signs = self.cache.features[: self.cache.count], self.cache.signs[: self.cache.count]
        highest = np.where(signs < 0, inner_products(rows, self.coef) + self.intercept, -np.inf).max(axis=1)
        highest[(signs > 0).any(axis=1)] = np.inf
        places = len(highest) - self.cache.fixed
        lowest = np.argsort(highest, kind="stable")[: min(places, max(missing, places // 10))]
        useless = np.zeros(signs.shape, dtype=np.bool_)
        useless[lowest] = signs[lowest] < 0
        self.crowded += int(useless.sum())
        self.cache.forget(useless)
        best = np.argsort(-np.where(wanted, scores, -np.inf).max(axis=1), kind="stable")
        self.crowded += int(wanted[best[self.cache.room :]].sum())
        wanted[best[self.cache.room :]] = False

    def finish(self, epochs: int) -> MiningReport:
        """Give the machine what was learned."""
        idle = [str(name) for name, times in zip(self.names, self.trainings, strict=True) if not times]
        if idle:
            raise ValueError(f"expected negatives of every class in the images, got none of {', '.join(idle)}")
        self.svm.coef_, self.svm.intercept_, self.svm.classes_ = self.coef, self.intercept, np.array(self.names)
        self.svm.n_iter_, self.svm.objective_, self.svm.gap_ = self.sweeps, self.objective, self.gap
        self.svm.scale_ = self.scale
        self.svm.warn_of_gaps(self.names, self.gap)
        kept = (self.cache.signs[: self.cache.count] < 0).sum(axis=0)
        return MiningReport(self.added, self.evicted, kept, self.trainings, self.crowded, epochs)
