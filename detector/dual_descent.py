"""Do the passes of dual coordinate descent for linear support vector machines (Hsieh et al. 2008), in numba.

Minimised is 1/2 a' Q a - sum a over 0 <= a_i <= C_i, with Q_ij = y_i y_j (x_i . x_j + B^2); for the squared hinge
there is no upper bound, and 1 / (2 C_i) is added to Q_ii. w = sum a_i y_i x_i. Every sum is taken in an order that
depends on the shapes alone, so the number of threads changes no bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from .threads import use_threads_of_torch

# Sums may be split into vector lanes and fused with their products; NaN and infinity stay what they are.
_FAST = {"reassoc", "contract", "nsz"}
_TILE, _DEPTH = 32, 1024
# The gap is looked at when the projected gradients of the active variables differ by no more than a bound, which then
# shrinks, but not into the noise of float32; or after some passes: a row may have been left out wrongly.
_FIRST_VIOLATION, _STRICTER, _LAST_VIOLATION = 0.1, 0.3, 1e-6
_PATIENCE = 25


class Bounds(NamedTuple):
    """Hold what bounds the dual variables: C of negatives and positives, the kind of loss, and B."""

    cost: float
    positive_cost: float
    squared: bool
    bias: float


class RowDescent:
    """Keep w of every class and read the rows; rows whose variable rests at a bound are left out for a while.

    features: (n, d) float32. signs: (n, K) int8, 0 for left out. alpha: (K, n) float64, changed in place.
    """

    def __init__(
        self, features: NDArray[np.float32], signs: NDArray[np.int8], alpha: NDArray[np.float64], bounds: Bounds
    ) -> None:
        self.features, self.alpha, self.bounds = features, alpha, bounds
        self.signs = np.ascontiguousarray(signs.T)
        self._active = self.signs != 0
        self._squares = squared_norms(features) + bounds.bias**2
        # of the last pass: the largest and the smallest gradient, which decide what is left out in the next
        self._limits = np.tile([np.inf, -np.inf], (len(alpha), 1))
        self._violation = np.full(len(alpha), _FIRST_VIOLATION)
        self._unseen = np.zeros(len(alpha), dtype=np.int64)
        self._weights = np.zeros((len(alpha), features.shape[1]), dtype=np.float32)
        self._biases = np.zeros(len(alpha))
        self._restore(np.arange(len(alpha)))

    def sweep(self, order: NDArray[np.int64], classes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Visit the rows in this order for some classes; return those whose gap should be measured."""
        use_threads_of_torch()
        state = (self.signs, self.alpha, self._active, self._weights, self._biases)
        rows = (self.features, self._squares, order)
        largest = _sweep_rows(rows, classes, state, self._limits, tuple(self.bounds), numba.get_num_threads())
        span = largest[:, 0] - largest[:, 1]
        self._limits[classes, 0] = np.where(largest[:, 0] > 0, largest[:, 0], np.inf)
        self._limits[classes, 1] = np.where(largest[:, 1] < 0, largest[:, 1], -np.inf)
        calm = span <= self._violation[classes]
        self._violation[classes[calm]] = np.maximum(self._violation[classes[calm]] * _STRICTER, _LAST_VIOLATION)
        self._unseen[classes] += 1
        due: NDArray[np.int64] = classes[calm | (self._unseen[classes] >= _PATIENCE)]
        return due

    def scores(self, classes: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the scores (len(classes), n) and |w|^2 + w_b^2; every row is active again and w has no drift."""
        self._restore(classes)
        self._unseen[classes] = 0
        self._active[classes] = self.signs[classes] != 0
        self._limits[classes] = [np.inf, -np.inf]
        weights, biases = self._weights[classes], self._biases[classes]
        scores = inner_products(weights, self.features) + biases[:, None] * self.bounds.bias
        return scores, squared_norms(weights) + biases**2

    def weights(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return w (K, d) and the intercepts (K,)."""
        self._restore(np.arange(len(self.alpha)))
        return self._weights, (self._biases * self.bounds.bias).astype(np.float32)

    def _restore(self, classes: NDArray[np.int64]) -> None:
        """Compute w from the dual variables: thousands of float32 steps have left it a little beside."""
        self._weights[classes] = combine(self.alpha[classes] * self.signs[classes], self.features)
        self._biases[classes] = (self.alpha[classes] * self.signs[classes]).sum(axis=1) * self.bounds.bias


class GramDescent:
    """Keep the score of every row for every class, and change all when a variable changes.

    features: (n, d) float32. signs: (n, K) int8, 0 for left out. alpha: (K, n) float64, changed in place.
    Needs 4 n^2 bytes for the inner products of the rows.
    """

    def __init__(
        self, features: NDArray[np.float32], signs: NDArray[np.int8], alpha: NDArray[np.float64], bounds: Bounds
    ) -> None:
        self.features, self.alpha, self.bounds = features, alpha, bounds
        self.signs = np.ascontiguousarray(signs.T)
        self._gram = np.zeros((len(features), len(features)), dtype=np.float32)
        use_threads_of_torch()
        _multiply(features, features, self._gram, True)
        self._gram += np.float32(bounds.bias**2)
        self._scores = combine(alpha * self.signs, self._gram)

    def sweep(self, order: NDArray[np.int64], classes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Visit the rows in this order for some classes; return these: their gaps are cheap to measure."""
        use_threads_of_torch()
        _sweep_gram(self._gram, order, classes, (self.signs, self.alpha, self._scores), tuple(self.bounds))
        return classes

    def scores(self, classes: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the scores (len(classes), n) and |w|^2 + w_b^2."""
        scores = self._scores[classes]
        return scores, (self.alpha[classes] * self.signs[classes] * scores).sum(axis=1)

    def weights(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return w (K, d) and the intercepts (K,)."""
        factors = self.alpha * self.signs
        intercepts = factors.sum(axis=1) * self.bounds.bias**2
        return combine(factors, self.features).astype(np.float32), intercepts.astype(np.float32)


def inner_products(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return left @ right.T, (n, m) float64, of (n, d) and (m, d) float32; no row's bits depend on others."""
    out = np.zeros((len(left), len(right)))
    use_threads_of_torch()
    _multiply(left, right, out, False)
    return out


def combine(factors: NDArray[np.float64], rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return factors @ rows, (K, d) float64, of (K, n) float64, mostly 0, and (n, d) float32."""
    out = np.zeros((len(factors), rows.shape[1]))
    use_threads_of_torch()
    _combine(factors, rows, out)
    return out


def squared_norms(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the squared Euclidean norm (n,) float64 of rows (n, d)."""
    out = np.empty(len(rows))
    use_threads_of_torch()
    _square(rows, out)
    return out


@numba.njit(cache=True, nogil=True, inline="always")
def _stepped(a: float, gradient: float, curvature: float, upper: float) -> float:
    """Return the variable that minimises the objective along its axis."""
    return min(max(a - gradient / max(curvature, 1e-12), 0.0), upper)


@numba.njit(cache=True, nogil=True, parallel=True, fastmath=_FAST)
def _sweep_rows(rows: Any, classes: Any, state: Any, limits: Any, bounds: Any, chunks: Any) -> Any:
    """Visit every active row once; the threads share the classes. Returns the extreme projected gradients (k, 2)."""
    features, squares, order = rows
    signs, alpha, active, weights, biases = state
    cost, positive_cost, squared, bias = bounds
    extremes = np.zeros((len(classes), 2))
    for chunk in numba.prange(chunks):
        for i in order:
            x = features[i]
            for j in range(chunk, len(classes), chunks):
                k = classes[j]
                if not active[k, i]:
                    continue
                y, a, w = float(signs[k, i]), alpha[k, i], weights[k]
                upper = positive_cost if y > 0 else cost
                ridge = 0.5 / upper if squared else 0.0
                upper = np.inf if squared else upper
                product = np.float32(0)
                for c in range(len(x)):
                    product += w[c] * x[c]
                gradient = y * (product + biases[k] * bias) - 1 + ridge * a
                projected = gradient
                if a <= 0:
                    active[k, i] = gradient <= limits[k, 0]
                    projected = min(gradient, 0.0)
                elif a >= upper:
                    active[k, i] = gradient >= limits[k, 1]
                    projected = max(gradient, 0.0)
                extremes[j, 0], extremes[j, 1] = max(extremes[j, 0], projected), min(extremes[j, 1], projected)
                if abs(projected) > 1e-12:
                    alpha[k, i] = _stepped(a, gradient, squares[i] + ridge, upper)
                    step = (alpha[k, i] - a) * y
                    biases[k] += step * bias
                    factor = np.float32(step)
                    for c in range(len(x)):
                        w[c] += factor * x[c]
    return extremes


@numba.njit(cache=True, nogil=True, parallel=True, fastmath=_FAST)
def _sweep_gram(gram: Any, order: Any, classes: Any, state: Any, bounds: Any) -> None:
    """Visit every row once; the threads share the classes."""
    signs, alpha, scores = state
    cost, positive_cost, squared, _ = bounds
    for j in numba.prange(len(classes)):
        k = classes[j]
        score = scores[k]
        for i in order:
            if signs[k, i] == 0:
                continue
            y, a = float(signs[k, i]), alpha[k, i]
            upper = positive_cost if y > 0 else cost
            ridge = 0.5 / upper if squared else 0.0
            upper = np.inf if squared else upper
            step = _stepped(a, y * score[i] - 1 + ridge * a, gram[i, i] + ridge, upper) - a
            if abs(step) * gram[i, i] > 1e-9:
                alpha[k, i] = a + step
                row, factor = gram[i], step * y
                for c in range(len(row)):
                    score[c] += factor * row[c]


@numba.njit(cache=True, nogil=True, parallel=True, fastmath=_FAST)
def _multiply(left: Any, right: Any, out: Any, symmetric: Any) -> None:
    """Fill out (n, m), zeros, with left @ right.T by tiles; a block of 4 x 2 products is summed at a time.

    At the end of a tile a block repeats the last row, so each product is summed in the same order everywhere.
    """
    n, m, depth = len(left), len(right), left.shape[1]
    across = (m + _TILE - 1) // _TILE
    for tile in numba.prange((n + _TILE - 1) // _TILE * across):
        top, side = tile // across * _TILE, tile % across * _TILE
        if symmetric and side > top:
            continue
        bottom, end = min(top + _TILE, n), min(side + _TILE, m)
        for start in range(0, depth, _DEPTH):
            stop = min(start + _DEPTH, depth)
            for i in range(top, bottom, 4):
                a0, a1 = left[i, start:stop], left[min(i + 1, n - 1), start:stop]
                a2, a3 = left[min(i + 2, n - 1), start:stop], left[min(i + 3, n - 1), start:stop]
                for j in range(side, end, 2):
                    b0, b1 = right[j, start:stop], right[min(j + 1, m - 1), start:stop]
                    s00 = s01 = s10 = s11 = s20 = s21 = s30 = s31 = np.float32(0)
                    for c in range(len(b0)):
                        s00, s01 = s00 + a0[c] * b0[c], s01 + a0[c] * b1[c]
                        s10, s11 = s10 + a1[c] * b0[c], s11 + a1[c] * b1[c]
                        s20, s21 = s20 + a2[c] * b0[c], s21 + a2[c] * b1[c]
                        s30, s31 = s30 + a3[c] * b0[c], s31 + a3[c] * b1[c]
                    sums = ((s00, s01), (s10, s11), (s20, s21), (s30, s31))
                    for p in range(min(4, n - i)):
                        out[i + p, j] += sums[p][0]
                        if j + 1 < m:
                            out[i + p, j + 1] += sums[p][1]
        if symmetric and side < top:
            for i in range(top, bottom):
                for j in range(side, end):
                    out[j, i] = out[i, j]


@numba.njit(cache=True, nogil=True, parallel=True, fastmath=_FAST)
def _combine(factors: Any, rows: Any, out: Any) -> None:
    """Add the rows times their factors, first to last, to out (K, d); the threads share the columns."""
    depth = rows.shape[1]
    for block in numba.prange((depth + _DEPTH - 1) // _DEPTH):
        start, end = block * _DEPTH, min(block * _DEPTH + _DEPTH, depth)
        for i in range(len(rows)):
            x = rows[i, start:end]
            for k in range(len(factors)):
                factor, total = factors[k, i], out[k, start:end]
                if factor != 0:
                    for c in range(len(x)):
                        total[c] += factor * x[c]


@numba.njit(cache=True, nogil=True, parallel=True)
def _square(rows: Any, out: Any) -> None:
    """Fill out (n,) with the rows' squared norms."""
    for i in numba.prange(len(rows)):
        x, total = rows[i], 0.0
        for c in range(len(x)):
            total += float(x[c]) * x[c]
        out[i] = total
