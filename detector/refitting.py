"""Train one of many support vector machines anew, with new positives and the hard negatives of new images.

One-vs-rest machines know nothing of each other, so the other classes keep what they have.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .example_store import ExampleStore
from .mining import ImageRegions, Miner, MiningRule
from .svm import LinearSVM, feature_matrix


@dataclass(frozen=True, slots=True, eq=False)
class RefitReport:
    """Tell what happened to one class: numbers of rows and trainings, the primal objective and the relative gap.

    positives: new ones. added, evicted: negatives that came and that went. kept: negatives at the end. crowded: how
    many left because max_rows was reached. epochs: passes over the new images.
    """

    positives: int
    added: int
    evicted: int
    kept: int
    crowded: int
    trainings: int
    epochs: int
    objective: float
    gap: float


def refit_class(
    store: ExampleStore,
    label: int,
    svm: LinearSVM,
    images: Iterable[ImageRegions],
    positives: NDArray[np.float32],
    rule: MiningRule,
) -> tuple[NDArray[np.float32], float, RefitReport]:
    """Train a class on its rows of a store, new positives, and hard negatives of new images; change its rows alone.

    store: what the machines were trained on (`example_files.load_examples`). When all went well it holds the class's
    new rows, too, and the rows, signs and dual variables of the other classes as before. An error leaves it as it was.
    svm: with the parameters of the first training; is not changed. images: new ones, whose `negatives` have one
    column, that of this class; visited once per epoch of the rule. positives: (P, d) float32, P may be 0.
    rule: as in `mine`; max_rows holds for this class alone. A negative is hard for the machine as it was trained, from
    the first image on.
    Returns coef (d,) float32 and intercept, which act on raw features as coef_ does, and what happened.
    Raises ValueError for a label or shapes that do not fit, a class without rows of both signs, and too small a
    max_rows. Warns if the class did not reach svm.tol.
    """
    part = store.take_class(label, rule.max_rows)
    signs = part.signs[: part.count]
    if not (signs > 0).any() or not (signs < 0).any():
        raise ValueError(f"expected positives and negatives of class {label} in the store, got one kind alone")
    if positives.ndim != 2 or positives.shape[1] != part.features.shape[1]:
        raise ValueError(f"expected positives of shape (P, {part.features.shape[1]}), got {positives.shape}")
    miner = Miner(part, [label], svm, rule)
    miner.start_trained()
    if len(positives):
        part.add_positives(0, feature_matrix(positives))
        miner.new[0] = len(positives)
    miner.mine(images, first=store.next_image)
    if not miner.trainings[0]:
        miner.train(np.array([0]))
    svm.warn_of_gaps([f"class {label}"], miner.gap)
    store.put_class(label, part)
    kept = int((part.signs[: part.count] < 0).sum())
    numbers = (len(positives), int(miner.added[0]), int(miner.evicted[0]), kept, miner.crowded)
    measures = (int(miner.trainings[0]), miner.epoch, float(miner.objective[0]), float(miner.gap[0]))
    return miner.coef[0], float(miner.intercept[0]), RefitReport(*numbers, *measures)
