"""Refit one row of a softmax layer while all others stay as they are, and while it says of known regions what it said.

With the other logits fixed, the probability of class k is sigmoid(s - o), where s = w . x + b is its own logit and o
the log-sum-exp of the others, background included; s - o are its log-odds. A region of the class costs its cross
entropy, log(1 + exp(-(s - o))). Any other costs half the square of what its log-odds have above a limit, and nothing
below it: a false alarm is to go, and what no threshold would let through has nothing to tell. Both are convex in w and
b. The row is held where it was by the squares of what s changes by in regions that were known before (`RowHold`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import minimize
from scipy.special import expit, logit

Vector = NDArray[np.float64]
_TOLERANCE = 1e-6  # of the gradient where the curvature is 1: the value is within about 1e-12 (d + 1) of the minimum
_CURVATURE_ROWS = 8192


@dataclass(frozen=True, slots=True, eq=False)
class RowExamples:
    """Hold what one row of a softmax layer learns from.

    features: (N, d) float32, what the layer reads. margins: (N,) float64, s - o of the row as it was. objects: (N,)
    bool, which are of the class; none of the others is.
    """

    features: NDArray[np.float32]
    margins: Vector
    objects: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.features)

    @classmethod
    def join(cls, parts: Sequence[RowExamples]) -> RowExamples:
        """Return the examples of several; there must be one at least."""
        arrays = [[getattr(part, name) for part in parts] for name in ("features", "margins", "objects")]
        return cls(*(np.concatenate(array) for array in arrays))

    def take(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> RowExamples:
        """Return some of the examples."""
        return RowExamples(self.features[rows], self.margins[rows], self.objects[rows])

    def probabilities(self, change: Vector) -> Vector:
        """Return p of the class, (N,), when weight and bias have changed by (d + 1,)."""
        found: Vector = expit(self.margins + self.features @ change[:-1] + change[-1])
        return found


@dataclass(frozen=True, slots=True, eq=False)
class RowFit:
    """Hold a refitted row: its change (d + 1,) float64, bias last.

    before, after: what the examples cost, and after with what the change costs. slope: the largest part of the
    gradient that is left. steps: of the solver.
    """

    change: Vector
    before: float
    after: float
    slope: float
    steps: int


def margins_of(logits: NDArray[np.floating], label: int) -> Vector:
    """Return s - o of a class for logits (N, K + 1): its logit less the log-sum-exp of all others, (N,) float64."""
    others = np.delete(logits.astype(np.float64), label, axis=1)
    found: Vector = logits[:, label] - np.logaddexp.reduce(others, axis=1)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class RowHold:
    """Hold what a change of a row costs: half of change' M change, with M = penalty I + weight X'X over known regions.

    X has a row (features, 1) for each known region, so that X change is what their log-odds s - o change by.
    matrix: M, (d + 1, d + 1) float64, positive definite. known: how many regions are in it.
    """

    matrix: Vector
    known: int = 0

    @classmethod
    def of(cls, width: int, penalty: float) -> RowHold:
        """Return the hold of d features without known regions. Raises ValueError unless penalty is positive."""
        if not 0 < penalty < np.inf:
            raise ValueError(f"expected a positive penalty, got {penalty}")
        return cls(penalty * np.eye(width + 1))

    def add(self, features: NDArray[np.float32], weight: float) -> RowHold:
        """Return the hold with more known regions, features (N, d), of a weight of at least 0.

        Raises ValueError for another weight and for features that are not finite.
        """
        if not 0 <= weight < np.inf:
            raise ValueError(f"expected a weight of at least 0, got {weight}")
        if not np.isfinite(features).all():
            raise ValueError("expected finite features, got NaN or infinity")
        x = _with_one(features)
        return RowHold(self.matrix + weight * (x.T @ x), self.known + len(x))


def fit_row(examples: RowExamples, hold: RowHold, limit: float, start: Vector | None = None) -> RowFit:
    """Minimise what the examples cost and what the change of weight and bias costs.

    hold: of as many features; it makes the minimum unique. limit: of the probability of the class, in (0, 1), below
    which a region that is not of it costs nothing. start: a change to begin at.
    L-BFGS (Liu and Nocedal 1989), in coordinates in which the curvature at the start is about 1 in all directions.
    Raises ValueError for another limit and for numbers that are not finite.
    """
    if not 0 < limit < 1:
        raise ValueError(f"expected a limit in (0, 1), got {limit}")
    x = _with_one(examples.features)
    margins, sign, matrix = examples.margins, np.where(examples.objects, -1.0, 1.0), hold.matrix
    if not (np.isfinite(x).all() and np.isfinite(margins).all()):
        raise ValueError("expected finite features and margins, got NaN or infinity")

    def costs(change: Vector) -> tuple[Vector, Vector, Vector]:
        """Return the cost of every example, its slope and its curvature in the log-odds."""
        z = margins + x @ change
        over, missed = np.maximum(z - logit(limit), 0), expit(-z)
        cost = np.where(examples.objects, np.logaddexp(0, -z), over**2 / 2)
        return cost, np.where(examples.objects, missed, over) * sign, np.where(sign < 0, missed * expit(z), over > 0)

    def objective(change: Vector) -> tuple[float, Vector]:
        (cost, slope, _), pull = costs(change), matrix @ change
        return float(cost.sum() + change @ pull / 2), slope @ x + pull

    nothing = np.zeros(x.shape[1])
    begin = nothing if start is None else start
    factor = _curvature(x, costs(begin)[2], matrix)  # lower triangular; change = begin + factor^-T u

    def scaled(u: Vector) -> tuple[float, Vector]:
        value, slope = objective(begin + solve_triangular(factor, u, lower=True, trans="T"))
        return value, solve_triangular(factor, slope, lower=True)

    options = {"maxiter": 2000, "maxfun": 4000, "ftol": 0.0, "gtol": _TOLERANCE, "maxcor": 20}
    found = minimize(scaled, nothing, jac=True, method="L-BFGS-B", options=options)
    change: Vector = begin + solve_triangular(factor, found.x, lower=True, trans="T")
    slope = float(np.abs(objective(change)[1]).max())
    return RowFit(change, objective(nothing)[0], float(found.fun), slope, int(found.nit))


def _with_one(features: NDArray[np.float32]) -> Vector:
    """Return features (N, d) with a column of ones, which the bias reads: (N, d + 1) float64."""
    return np.concatenate([features, np.ones((len(features), 1))], axis=1)


def _curvature(x: Vector, curvature: Vector, matrix: Vector) -> Vector:
    """Return the Cholesky factor of the Hessian, (d + 1, d + 1), from some of the rows of x (N, d + 1).

    curvature: (N,), of the cost of every row in its log-odds. It shapes the way to the minimum, not the minimum.
    """
    step = max(1, len(x) // _CURVATURE_ROWS)
    some, weight = x[::step], curvature[::step]
    hessian = step * (some.T * weight) @ some + matrix
    factor: Vector = cholesky(hessian, lower=True)
    return factor
