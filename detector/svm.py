"""Train one-vs-rest linear support vector machines by dual coordinate descent (Hsieh et al. 2008).

Each class is a problem of its own, solved to a duality gap that is measured and reported. All classes see the rows in
the same order, and their weights are changed while a row lies in the cache. Where there are fewer rows than features,
the rows' inner products are computed once instead, and a step costs n instead of d. Neither the number of threads nor
the other classes change a bit of the result.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .dual_descent import Bounds, GramDescent, RowDescent, inner_products, squared_norms

LOSSES = ("hinge", "squared_hinge")
SOLVERS = ("auto", "gram", "rows")
GRAM_BYTES = 512 * 2**20
# With fewer rows than this per class the inner products cost about what easy problems take without them, and hard ones
# (large C, many passes) become several times faster; measured with 20 classes of 6,720 features.
GRAM_ROWS_PER_CLASS = 150

Features = NDArray[np.float32] | Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """Hold what a solver found for K classes.

    coef: (K, d) float32. intercept: (K,) float32. alpha: (K, n) float64, the dual variables, to start from again.
    sweeps: (K,) int64 passes over the rows. objective, gap: (K,) float64, the primal value and the relative gap.
    """

    coef: NDArray[np.float32]
    intercept: NDArray[np.float32]
    alpha: NDArray[np.float64]
    sweeps: NDArray[np.int64]
    objective: NDArray[np.float64]
    gap: NDArray[np.float64]


@dataclass(eq=False)
class LinearSVM:
    """Separate every class from the rest with a linear support vector machine; scikit-learn's contract.

    Minimises for each class, over w and w_b, as liblinear with R-CNN's `-w1 2 -B 10` does (the bias is regularised):

        1/2 |w|^2 + 1/2 w_b^2 + sum_i C_i loss(y_i (w . s x_i + w_b B)),    loss(m) = max(0, 1 - m) or its square,

    where C_i is C for negatives and C * positive_weight for positives, B is bias_multiplier, and s is 1, or
    feature_norm / mean |x_i| if feature_norm is given (20 in R-CNN). s is then part of coef_: it acts on raw features.
    loss: "hinge" or "squared_hinge". tol: the relative duality gap (primal - dual) / primal to reach.
    max_iter: passes over the rows. solver: "rows", "gram" or "auto", which takes the faster one.

    After `fit`: coef_ (K, d) float32, intercept_ (K,) float32 = w_b B, classes_ (K,), n_iter_ (K,) int64, objective_
    and gap_ (K,) float64, known as well as float32 knows the margins: to about 1e-6 sum_i C_i; scale_ = s. There is one
    row per class also where there are two classes.
    """

    C: float = 1e-3
    positive_weight: float = 2.0
    bias_multiplier: float = 10.0
    loss: str = "hinge"
    tol: float = 1e-3
    max_iter: int = 1000
    seed: int = 0
    feature_norm: float | None = None
    solver: str = "auto"
    coef_: NDArray[np.float32] = field(init=False, repr=False)
    intercept_: NDArray[np.float32] = field(init=False, repr=False)
    classes_: NDArray[Any] = field(init=False, repr=False)
    n_iter_: NDArray[np.int64] = field(init=False, repr=False)
    objective_: NDArray[np.float64] = field(init=False, repr=False)
    gap_: NDArray[np.float64] = field(init=False, repr=False)
    scale_: float = field(init=False, repr=False)

    _estimator_type = "classifier"

    def fit(self, X: Features, y: Any, classes: Sequence[Any] | None = None) -> LinearSVM:  # noqa: N803
        """Train on features (n, d) and return itself.

        X: float32 array or CPU tensor, used in place if C-contiguous. y: (n,) labels, or (n, K) integers: 1 for a
        positive, -1 for a negative of a class, 0 for a row that this class leaves out.
        classes: the K classes in their order; default the sorted distinct labels, or 0 .. K - 1 for a matrix.
        Raises ValueError for features that are not finite, other shapes, unknown labels, a class without positives or
        without negatives, or parameters out of range. Warns if a class did not reach tol in max_iter.
        """
        features = feature_matrix(X)
        names, signs = _signs(y, len(features), classes)
        scale = 1.0 if self.feature_norm is None else norm_factor(features, self.feature_norm)
        found = self.solve(features, signs, scale=scale)
        self.warn_of_gaps(names, found.gap)
        self.coef_, self.intercept_, self.classes_ = found.coef, found.intercept, names
        self.n_iter_, self.objective_, self.gap_, self.scale_ = found.sweeps, found.objective, found.gap, scale
        return self

    def decision_function(self, X: Features) -> NDArray[np.float32]:  # noqa: N803
        """Return the scores (n, K) float32 of features (n, d); above 0 is on the positives' side."""
        if not hasattr(self, "coef_"):
            raise ValueError("expected a trained LinearSVM, got one before fit")
        features = feature_matrix(X)
        if features.shape[1] != self.coef_.shape[1]:
            raise ValueError(f"expected {self.coef_.shape[1]} features as in training, got {features.shape[1]}")
        return (inner_products(features, self.coef_) + self.intercept_).astype(np.float32)

    def predict(self, X: Features) -> NDArray[Any]:  # noqa: N803
        """Return the class of the highest score for each of n rows, an (n,) array; the first of equal ones."""
        best: NDArray[Any] = self.classes_[self.decision_function(X).argmax(axis=1)]
        return best

    def score(self, X: Features, y: Any) -> float:  # noqa: N803
        """Return which part of the (n,) labels `predict` names rightly."""
        return float(np.mean(self.predict(X) == np.asarray(y)))

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}

    def set_params(self, **values: Any) -> LinearSVM:
        """Change parameters by name; raises ValueError for a name that is none."""
        known = self.get_params()
        for name, value in values.items():
            if name not in known:
                raise ValueError(f"expected a parameter among {', '.join(known)}, got {name}")
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        """Tell scikit-learn, which alone asks, that this is a classifier."""
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        target = TargetTags(required=True)
        return Tags("classifier", target, classifier_tags=ClassifierTags(), input_tags=InputTags())

    def solve(
        self,
        features: NDArray[np.float32],
        signs: NDArray[np.int8],
        start: NDArray[np.float64] | None = None,
        scale: float = 1.0,
    ) -> Solution:
        """Solve the problem of every class without changing this object.

        features: (n, d) float32, C-contiguous. signs: (n, K) int8, 1, -1 or 0 for left out, both signs in each column.
        start: (K, n) dual variables of a similar problem. scale: s of the objective.
        """
        bounds = self._bounds(scale)
        alpha = _feasible(start, signs, bounds)
        descent: _Descent
        if self._takes_gram(len(features), features.shape[1], signs.shape[1]):
            descent = GramDescent(features, signs, alpha, bounds)
        else:
            descent = RowDescent(features, signs, alpha, bounds)
        objective, gap, sweeps = _descend(descent, bounds, self)
        coef, intercept = descent.weights()
        return Solution(coef, intercept, alpha, sweeps, objective / scale**2, gap)

    def warn_of_gaps(self, names: Sequence[Any] | NDArray[Any], gaps: NDArray[np.float64]) -> None:
        """Warn, by name, of the classes whose gap is larger than tol."""
        late = [str(name) for name, gap in zip(names, gaps, strict=True) if gap > self.tol]
        if late:
            reached = f"gap up to {gaps.max():.2g} after {self.max_iter} passes"
            message = f"{', '.join(late)}: {reached}, expected at most {self.tol}; raise max_iter or lower C"
            warnings.warn(message, RuntimeWarning, stacklevel=3)

    def _takes_gram(self, rows: int, columns: int, classes: int) -> bool:
        if self.solver != "auto":
            return self.solver == "gram"
        return rows < min(columns, GRAM_ROWS_PER_CLASS * classes) and rows * rows * 8 <= GRAM_BYTES

    def _bounds(self, scale: float) -> Bounds:
        """Check the parameters; put the scale of the features into C and B, so that no feature is copied."""
        for name in ("C", "positive_weight", "tol"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"expected a positive {name}, got {getattr(self, name)}")
        if not 0 <= self.bias_multiplier < np.inf or self.max_iter < 1:
            raise ValueError(
                f"expected a bias_multiplier of 0 or more and a max_iter of 1 or more, got {self.bias_multiplier} and "
                f"{self.max_iter}"
            )
        for name, known in (("loss", LOSSES), ("solver", SOLVERS)):
            if getattr(self, name) not in known:
                raise ValueError(f"expected {name} to be one of {', '.join(known)}, got {getattr(self, name)}")
        cost = self.C * scale**2
        return Bounds(cost, cost * self.positive_weight, self.loss == "squared_hinge", self.bias_multiplier / scale)


class _Descent(Protocol):
    """Do passes over the rows for the classes that still need them, on dual variables that are changed in place."""

    alpha: NDArray[np.float64]
    signs: NDArray[np.int8]

    def sweep(self, order: NDArray[np.int64], classes: NDArray[np.int64]) -> NDArray[np.int64]: ...

    def scores(self, classes: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...

    def weights(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...


def _descend(descent: _Descent, bounds: Bounds, svm: LinearSVM) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Sweep until every class has its gap or max_iter is reached; return objectives, gaps and numbers of sweeps."""
    count, rows = descent.alpha.shape
    objective, gap = np.full(count, np.inf), np.full(count, np.inf)
    sweeps = np.zeros(count, dtype=np.int64)
    order = np.random.default_rng(svm.seed)
    for number in range(1, svm.max_iter + 1):
        pending = np.flatnonzero(gap > svm.tol)
        due = descent.sweep(order.permutation(rows), pending)
        sweeps[pending] = number
        due = pending if number == svm.max_iter else due
        if len(due):
            objective[due], gap[due] = _measure(descent, due, bounds)
        if (gap <= svm.tol).all():
            break
    return objective, gap, sweeps


def _measure(descent: _Descent, classes: NDArray[np.int64], bounds: Bounds) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the primal objective and the relative duality gap of classes."""
    scores, norms = descent.scores(classes)
    signs, alpha = descent.signs[classes], descent.alpha[classes]
    costs = np.where(signs > 0, bounds.positive_cost, bounds.cost) * (signs != 0)
    losses = np.maximum(1 - signs * scores, 0)
    primal = norms / 2 + (costs * (losses**2 if bounds.squared else losses)).sum(axis=1)
    dual = alpha.sum(axis=1) - norms / 2
    if bounds.squared:
        dual -= (alpha**2 / (4 * np.where(signs == 0, 1, costs))).sum(axis=1)
    return primal, (primal - dual) / primal


def feature_matrix(features: Features) -> NDArray[np.float32]:
    """Return features (n, d) as a C-contiguous float32 array, without a copy where they are one.

    Raises ValueError for another number of axes, no row, other than floating-point numbers, NaN or infinity.
    """
    array = features.detach().cpu().numpy() if isinstance(features, Tensor) else np.asarray(features)
    if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
        raise ValueError(f"expected features of shape (n, d) and type float32, got {array.shape} {array.dtype}")
    matrix: NDArray[np.float32] = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(squared_norms(matrix)).all():
        raise ValueError("expected finite features, got NaN or infinity")
    return matrix


def norm_factor(features: NDArray[np.float32], norm: float = 20.0) -> float:
    """Return the factor that gives rows (n, d) this mean Euclidean norm (Girshick et al. 2014's code: 20)."""
    mean = float(np.sqrt(squared_norms(features)).mean())
    if mean <= 0 or norm <= 0:
        raise ValueError(f"expected features that are not all 0 and a positive norm, got means {mean} and {norm}")
    return norm / mean


def _feasible(start: NDArray[np.float64] | None, signs: NDArray[np.int8], bounds: Bounds) -> NDArray[np.float64]:
    if start is None:
        return np.zeros(signs.T.shape)
    upper = np.inf if bounds.squared else np.where(signs.T > 0, bounds.positive_cost, bounds.cost)
    return np.clip(np.where(signs.T == 0, 0, start), 0, upper)


def _signs(y: Any, rows: int, classes: Sequence[Any] | None) -> tuple[NDArray[Any], NDArray[np.int8]]:
    """Return the classes (K,) and the signs (n, K) int8 that labels or a matrix of signs mean."""
    given = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if given.ndim not in (1, 2) or len(given) != rows:
        raise ValueError(f"expected {rows} labels or rows of signs, got {given.shape}")
    if given.ndim == 1:
        names = np.unique(given) if classes is None else np.asarray(classes)
        if not np.isin(given, names).all():
            raise ValueError(f"expected labels among {names.tolist()}, got {np.setdiff1d(given, names).tolist()}")
        signs = np.where(given[:, None] == names, 1, -1).astype(np.int8)
    else:
        names = np.arange(given.shape[1]) if classes is None else np.asarray(classes)
        if names.shape != given.shape[1:] or not np.isin(given, (-1, 0, 1)).all():
            raise ValueError(f"expected signs 1, -1 or 0 in {len(names)} columns, got shape {given.shape}")
        signs = given.astype(np.int8)
    for name, column in zip(names, signs.T, strict=True):
        if not (column > 0).any() or not (column < 0).any():
            missing = "negatives" if (column > 0).any() else "positives"
            raise ValueError(f"expected positives and negatives of every class, got no {missing} of {name}")
    return names, signs
