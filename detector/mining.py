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
import torch
from numpy.typing import NDArray
from torch import Tensor

from .dual_descent import combine, inner_products
from .duplicates import DUPLICATES, distinct_negatives
from .example_store import ExampleStore
from .feature_norm import MeanNorm
from .svm import LinearSVM, feature_matrix, norm_factor

_COUNTS = ("added", "new", "evicted", "trainings", "sweeps")
_MEASURES = ("coef", "intercept", "objective", "gap")


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
    norms = MeanNorm()
    for features in sample:
        norms.add(features)
    return norms.factor(norm)


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
    store = _store_of(positives, svm, rule, scale)
    miner = Miner(store, list(positives), svm, rule)
    miner.mine(images, report)
    return miner.finish()


def _store_of(
    positives: Mapping[Any, NDArray[np.float32]], svm: LinearSVM, rule: MiningRule, scale: float | None
) -> ExampleStore:
    """Return a store with the positives of all classes."""
    rows = [feature_matrix(features) for features in positives.values()]
    if not rows or len({features.shape[1] for features in rows}) != 1:
        raise ValueError(
            f"expected positives of one length for every class, got {[features.shape for features in rows]}"
        )
    count = sum(map(len, rows))
    if count >= rule.max_rows:
        raise ValueError(f"expected max_rows above the {count} positives, got {rule.max_rows}")
    store = ExampleStore(len(rows), rows[0].shape[1], rule.max_rows)
    for label, features in enumerate(rows):
        store.add_positives(label, features)
    if scale is None:
        positive = store.features[: store.count]
        scale = 1.0 if svm.feature_norm is None else norm_factor(positive, svm.feature_norm)
    store.scale = scale
    return store


class Miner:
    """Go from image to image with a store and the machines trained on it so far.

    Between two calls all it knows is in the store and in `to_tensors`, so that another miner can go on.
    image: the number of the next image. epoch: the passes that were ended. trained: (K,) bool, which classes have
    machines; the others take every negative.
    """

    def __init__(self, store: ExampleStore, names: Sequence[Any], svm: LinearSVM, rule: MiningRule) -> None:
        self.store, self.names, self.svm, self.rule = store, names, svm, rule
        # beginning where the last training stood is worth more than inner products made anew
        self.solver = replace(svm, solver="rows" if svm.solver == "auto" else svm.solver)
        count, columns = len(store.alpha), store.features.shape[1]
        self.coef, self.intercept = np.zeros((count, columns), np.float32), np.zeros(count, np.float32)
        self.objective, self.gap = np.full(count, np.inf), np.full(count, np.inf)
        self.added, self.new, self.evicted, self.trainings, self.sweeps = np.zeros((5, count), dtype=np.int64)
        self.trained = np.zeros(count, dtype=np.bool_)
        self.crowded = self.image = self.epoch = 0
        self._before, self._idle = 0, False  # the trainings before this pass, and whether the last one had none

    def to_tensors(self) -> dict[str, Tensor]:
        """Return what the store holds, was counted and learned, as views: they change as mining goes on."""
        own = {name: torch.from_numpy(getattr(self, name)) for name in (*_COUNTS, *_MEASURES, "trained")}
        numbers = [self.crowded, self.image, self.epoch, self._before, int(self._idle)]
        return {**self.store.to_tensors(), **own, "numbers": torch.tensor(numbers)}

    def take_up(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from the `to_tensors` of another miner, whose rows this one's store holds.

        Raises ValueError for a tensor that is missing or does not fit.
        """
        for name in (*_COUNTS, *_MEASURES, "trained"):
            value = getattr(self, name)
            got = tensors[name].numpy() if name in tensors else None
            if got is None or (got.shape, got.dtype) != (value.shape, value.dtype):
                raise ValueError(f"expected {name} of shape {value.shape} and type {value.dtype}, got another tensor")
            setattr(self, name, got.copy())
        if tuple(tensors.get("numbers", torch.empty(0)).shape) != (5,):
            raise ValueError("expected numbers of shape (5,), got another tensor")
        self.crowded, self.image, self.epoch, self._before, idle = map(int, tensors["numbers"])
        self._idle = bool(idle)

    def start_trained(self) -> None:
        """Begin with the machines that the dual variables of the store stand for."""
        rows, bias = self.store.count, self.svm.bias_multiplier / self.store.scale
        factors = self.store.alpha[:, :rows] * self.store.signs[:rows].T
        self.coef = combine(factors, self.store.features[:rows]).astype(np.float32)
        self.intercept = (factors.sum(axis=1) * bias**2).astype(np.float32)
        self.trained[:] = True

    @property
    def done(self) -> bool:
        """Tell whether the last pass found nothing new, or was the last one allowed."""
        return self._idle or self.epoch >= self.rule.epochs

    def mine(self, images: Iterable[ImageRegions], report: Callable[[int], None] | None = None, first: int = 0) -> None:
        """Pass over images until that is done. first: the number of the first one. report: told after every image.

        Raises ValueError for images that can be visited once alone if there are several epochs.
        """
        if self.rule.epochs > 1 and iter(images) is images:
            raise ValueError(f"expected images that can be visited {self.rule.epochs} times, got an iterator")
        while not self.done:
            for index, image in enumerate(images, first):
                self.visit(index, image)
                if report is not None:
                    report(1)
            self.end_pass()

    def visit(self, index: int, image: ImageRegions) -> None:
        """Add the hard negatives of an image; train the classes that are due."""
        shape = (len(image.features), len(self.coef))
        if image.negatives.shape != shape or image.negatives.dtype != np.bool_:
            raise ValueError(f"expected bool negatives of shape {shape}, got {image.negatives.shape}")
        self.image = index + 1
        if not len(image.features):
            return
        features = feature_matrix(image.features)
        if features.shape[1] != self.coef.shape[1]:
            raise ValueError(f"expected {self.coef.shape[1]} features as the positives have, got {features.shape[1]}")
        scores = inner_products(features, self.coef) + self.intercept
        wanted = (scores > self.rule.hard_threshold) | ~self.trained
        wanted &= distinct_negatives(image.regions, image.negatives, self.rule.duplicates)
        wanted &= ~self.store.known(index, len(features))
        self._make_room(scores, wanted)
        self.store.add(index, features, wanted)
        self.new += wanted.sum(axis=0)
        self.added += wanted.sum(axis=0)
        first = ~self.trained & (self.new > 0)
        self.train(np.flatnonzero(first | (self.new > self.rule.retrain_limit)))

    def end_pass(self) -> None:
        """Train the classes that have met something new since their last training; begin with the first image again."""
        self.train(np.flatnonzero(self.new > 0))
        self._idle, self._before = self._before == self.trainings.sum(), int(self.trainings.sum())
        self.image = 0
        self.epoch += 1

    def train(self, classes: NDArray[np.int64]) -> None:
        """Train some classes on the store, from where they stood, and forget their easy negatives."""
        if not len(classes):
            return
        rows = self.store.count
        features, signs = self.store.features[:rows], self.store.signs[:rows]
        found = self.solver.solve(features, signs[:, classes], self.store.alpha[classes, :rows], self.store.scale)
        self.coef[classes], self.intercept[classes] = found.coef, found.intercept
        self.objective[classes], self.gap[classes], self.sweeps[classes] = found.objective, found.gap, found.sweeps
        self.store.alpha[classes, :rows] = found.alpha
        easy = np.zeros(signs.shape, dtype=np.bool_)
        scores = inner_products(features, found.coef) + found.intercept
        easy[:, classes] = (signs[:, classes] < 0) & (scores < self.rule.evict_threshold)
        self.evicted += easy.sum(axis=0)
        self.store.forget(easy)
        self.new[classes] = 0
        self.trainings[classes] += 1
        self.trained[classes] = True

    def _make_room(self, scores: NDArray[np.float64], wanted: NDArray[np.bool_]) -> None:
        """Let the lowest negatives go, in the store (a tenth at least) and then in `wanted`, if they are too many."""
        missing = int(wanted.any(axis=1).sum()) - self.store.room
        if missing <= 0:
            return
        rows, signs = self.store.features[: self.store.count], self.store.signs[: self.store.count]
        highest = np.where(signs < 0, inner_products(rows, self.coef) + self.intercept, -np.inf).max(axis=1)
        highest[(signs > 0).any(axis=1)] = np.inf
        places = len(highest) - self.store.fixed
        lowest = np.argsort(highest, kind="stable")[: min(places, max(missing, places // 10))]
        useless = np.zeros(signs.shape, dtype=np.bool_)
        useless[lowest] = signs[lowest] < 0
        self.crowded += int(useless.sum())
        self.store.forget(useless)
        best = np.argsort(-np.where(wanted, scores, -np.inf).max(axis=1), kind="stable")
        self.crowded += int(wanted[best[self.store.room :]].sum())
        wanted[best[self.store.room :]] = False

    def finish(self) -> MiningReport:
        """Give the machine what was learned."""
        idle = [str(name) for name, times in zip(self.names, self.trained, strict=True) if not times]
        if idle:
            raise ValueError(f"expected negatives of every class in the images, got none of {', '.join(idle)}")
        self.svm.coef_, self.svm.intercept_, self.svm.classes_ = self.coef, self.intercept, np.array(self.names)
        self.svm.n_iter_, self.svm.objective_, self.svm.gap_ = self.sweeps, self.objective, self.gap
        self.svm.scale_ = self.store.scale
        self.svm.warn_of_gaps(self.names, self.gap)
        kept = (self.store.signs[: self.store.count] < 0).sum(axis=0)
        return MiningReport(self.added, self.evicted, kept, self.trainings, self.crowded, self.epoch)
