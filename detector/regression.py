"""Correct boxes by ridge regression on the features of their regions, one regressor per class, in closed form.

This is the last stage of R-CNN (Girshick et al. 2014, appendix C) and of SPP-net (He et al. 2015, section 4.1). Where
their text is silent it follows the code that both released: targets are centred and decorrelated per class, and the
bias is one more feature, a constant 1 whose weight is penalised like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .boxes import UNIT_STD, decode, encode
from .structures import check_boxes

MIN_ROWS = 10  # of a class, below which its boxes stay as they are
_VARIANCE = 0.001  # added to the variances of targets before they are evened out, as both codes do
_BLOCK = 1024  # rows or columns that are widened to float64 at a time


@dataclass(frozen=True, slots=True)
class RegressionRule:
    """Say which proposals a regressor learns from, and how strongly it is held back.

    iou: the least IoU of a proposal with its object. penalty: lambda, which multiplies the squared weights; it is meant
    for features scaled to a mean norm of 20 over the training set, as both authors' codes do.
    """

    iou: float
    penalty: float

    def __post_init__(self) -> None:
        if not 0 <= self.iou <= 1 or self.penalty <= 0:
            raise ValueError(f"expected an IoU in [0, 1] and a positive penalty, got {self.iou} and {self.penalty}")


# The texts say "at least" (SPP-net) and "greater than" (R-CNN); both codes leave out rows on the bound itself.
RULES: dict[str, RegressionRule] = {
    "spp": RegressionRule(0.5, 4000.0),
    "rcnn": RegressionRule(0.6, 1000.0),
}


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """Hold proposals and the object that each of them overlaps most.

    boxes, truth: (R, 4) float32 proposals and objects. labels: (R,) int64 classes of the objects, K for none.
    iou: (R,) float, of each proposal with its object.
    """

    boxes: Tensor
    truth: Tensor
    labels: Tensor
    iou: Tensor

    def __post_init__(self) -> None:
        check_boxes(self.boxes, "proposals")
        check_boxes(self.truth, "objects")
        count = len(self.boxes)
        if len(self.truth) != count or self.labels.shape != (count,) or self.iou.shape != (count,):
            got = f"{len(self.truth)} objects, labels {tuple(self.labels.shape)}, IoU {tuple(self.iou.shape)}"
            raise ValueError(f"expected an object, a label and an IoU for each of {count} proposals, got {got}")

    def __len__(self) -> int:
        return len(self.boxes)


def whitening(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the symmetric matrices that decorrelate targets and undo it: (S + 0.001 I)^-1/2 and (S + 0.001 I)^1/2.

    covariance: S, (4, 4) float64. With S = V D V' they are V (D + 0.001)^-1/2 V' and V (D + 0.001)^1/2 V', as in
    `rcnn_train_bbox_regressor.m`. Whitened targets have the covariance V D (D + 0.001)^-1 V'.
    """
    values, vectors = torch.linalg.eigh(covariance)
    deviations = (values.clamp(min=0) + _VARIANCE).sqrt()
    return vectors / deviations @ vectors.T, vectors * deviations @ vectors.T


class _Rows:
    """Collect the rows X of one class with a bias column, and solve (X'X + lambda I) B = X'Y in float64.

    While rows are no more than columns they are kept, and the dual (XX' + lambda I) A = Y, B = X'A, is the smaller one.
    """

    def __init__(self, width: int):
        self.width, self.count = width, 0
        self.parts: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.gram: Tensor | None = None  # X'X, (d + 1, d + 1); the bias is the last column
        self.cross: Tensor | None = None  # X'Y, (d + 1, 4)

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Add (n, d) features and (n, 4) float64 targets."""
        self.count += len(features)
        self.targets.append(targets)
        self.parts.append(features)
        if self.count > self.width + 1 or self.gram is not None:
            self._sum_up()

    def _sum_up(self) -> None:
        """Turn the rows that are kept into sums of products, and let them go."""
        if self.gram is None or self.cross is None:
            self.gram = self.parts[0].new_zeros(self.width + 1, self.width + 1, dtype=torch.float64)
            self.cross = self.gram.new_zeros(self.width + 1, 4)
        targets = torch.cat(self.targets[-len(self.parts) :])
        while self.parts:
            part = self.parts.pop(0)
            own, targets = targets[: len(part)], targets[len(part) :]
            for rows, y in zip(part.split(_BLOCK), own.split(_BLOCK), strict=True):
                x = torch.cat([rows.double(), rows.new_ones(len(rows), 1, dtype=torch.float64)], dim=1)
                self.gram.addmm_(x.T, x)
                self.cross.addmm_(x.T, y)

    def solve(self, penalty: float, scale: float) -> Tensor:
        """Return the weights (d + 1, 4) float64, bias last, of the rows times a scale, for targets as before whitening.

        The bias column stays 1: with S = diag(s, ..., s, 1) the sums are S X'X S and S X'Y, which are changed in place.
        """
        targets = torch.cat(self.targets)
        mean = targets.mean(dim=0)
        centred = targets - mean
        white, colour = whitening(centred.T @ centred / len(centred))
        if self.gram is None or self.cross is None:
            weights = self._solve_dual(centred @ white, penalty, scale)
        else:
            self.gram[:-1] *= scale
            self.gram[:, :-1] *= scale
            self.cross[:-1] *= scale
            cross = (self.cross - self.gram[:, -1:] * mean) @ white
            weights = _solve_shifted(self.gram, penalty, cross)
        weights = weights @ colour
        weights[-1] += mean
        return weights

    def _solve_dual(self, targets: Tensor, penalty: float, scale: float) -> Tensor:
        gram = targets.new_ones(self.count, self.count)  # what the bias column adds
        columns = range(0, self.width, _BLOCK)
        for first in columns:
            x = self._columns(first) * scale
            gram.addmm_(x, x.T)
        dual = _solve_shifted(gram, penalty, targets)
        return torch.cat([*(scale * self._columns(first).T @ dual for first in columns), dual.sum(dim=0, keepdim=True)])

    def _columns(self, first: int) -> Tensor:
        return torch.cat([part[:, first : first + _BLOCK].double() for part in self.parts])


def _solve_shifted(gram: Tensor, penalty: float, right: Tensor) -> Tensor:
    """Solve (G + lambda I) B = R by Cholesky; `gram` is changed in place."""
    gram.diagonal().add_(penalty)
    return torch.cholesky_solve(right, torch.linalg.cholesky(gram))


class BoxRegressor:
    """Learn from proposals and their objects how to correct the boxes of each of K classes.

    Call `fit` with everything, or `partial_fit` with one image after the other and `solve` at the end. Then:
    coef_: (K, 4, d) float32 and intercept_: (K, 4) float32 give (tx, ty, tw, th) of appendix C, whitening undone.
    rows_: (K,) int64 proposals that each class learned from. fitted_: (K,) bool, which of them had `min_rows`; the
    boxes of the others stay as they are. n_features_in_: d.

    A class holds its rows as they came, 4 n d bytes in float32, while they are at most d + 1; then 8 d^2 bytes of sums.
    Solving needs twice the latter once more, or 8 n^2. If K such classes do not fit into memory, go over the images
    once per few classes: `solve` leaves classes alone that were given no rows since the last one.
    """

    coef_: Tensor
    intercept_: Tensor
    rows_: Tensor
    fitted_: Tensor
    n_features_in_: int

    def __init__(self, classes: int, rule: str | RegressionRule = "spp", min_rows: int = MIN_ROWS):
        if classes < 1 or min_rows < 1:
            raise ValueError(f"expected at least one class and one row, got {classes} and {min_rows}")
        if isinstance(rule, str):
            if rule not in RULES:
                raise ValueError(f"expected a rule for regression among {', '.join(RULES)}, got {rule!r}")
            rule = RULES[rule]
        self.classes, self.rule, self.min_rows = classes, rule, min_rows
        self._sums: dict[int, _Rows] = {}

    def fit(self, features: Tensor, matches: Matches) -> BoxRegressor:
        """Learn all classes from (R, d) features of proposals, forgetting what was learned before."""
        self._sums.clear()
        for name in vars(self).keys() & {"coef_", "n_features_in_"}:
            delattr(self, name)
        return self.partial_fit(features, matches).solve()

    def partial_fit(self, features: Tensor, matches: Matches) -> BoxRegressor:
        """Collect the proposals that the rule chooses: those of a class whose IoU is large enough.

        features: (R, d) float of the proposals, scaled, or as they are if `solve` is given the scale.
        Raises ValueError for shapes that do not fit, labels beyond K, and numbers that are not finite.
        """
        if features.ndim != 2 or len(features) != len(matches):
            got = f"{tuple(features.shape)} features"
            raise ValueError(f"expected features of shape (R, d) for {len(matches)} proposals, got {got}")
        if not hasattr(self, "n_features_in_"):
            self.n_features_in_ = features.shape[1]
        self._check_width(features)
        labels = matches.labels
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) <= self.classes:
            raise ValueError(f"expected labels in [0, {self.classes}], got {labels.unique().tolist()}")
        chosen = (labels < self.classes) & (matches.iou >= self.rule.iou)
        targets = encode(matches.boxes[chosen].double(), matches.truth[chosen].double(), UNIT_STD)
        kept = features[chosen].detach()
        if not torch.isfinite(targets).all() or not torch.isfinite(kept).all():
            raise ValueError("expected finite features and boxes of positive sides, got others")
        for label in labels[chosen].unique().tolist():
            own = labels[chosen] == label
            self._sums.setdefault(label, _Rows(self.n_features_in_)).add(kept[own], targets[own])
        return self

    def solve(self, scale: float = 1.0) -> BoxRegressor:
        """Fit every class to the rows collected since the last time, and let these go; other classes stay untouched.

        scale: the factor of the features, where it was not known when they were collected: the result, which is for
        scaled features, is that of features times this factor. Raises ValueError unless it is positive.
        """
        if not 0 < scale < float("inf"):
            raise ValueError(f"expected a positive scale, got {scale}")
        if not hasattr(self, "n_features_in_"):
            raise ValueError("expected partial_fit before solve, got solve alone")
        if not hasattr(self, "coef_"):
            self.coef_ = torch.zeros(self.classes, 4, self.n_features_in_)
            self.intercept_ = torch.zeros(self.classes, 4)
            self.rows_ = torch.zeros(self.classes, dtype=torch.int64)
            self.fitted_ = torch.zeros(self.classes, dtype=torch.bool)
        for label in sorted(self._sums):
            sums = self._sums.pop(label)
            self.rows_[label], self.fitted_[label] = sums.count, sums.count >= self.min_rows
            self.coef_[label], self.intercept_[label] = 0, 0
            if self.fitted_[label]:
                weights = sums.solve(self.rule.penalty, scale).T
                self.coef_[label], self.intercept_[label] = weights[:, :-1], weights[:, -1]
        return self

    def predict(self, features: Tensor, boxes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Correct boxes: (R, 4) float32, each as one of its class, or (R, K, 4) as one of every class without labels.

        features: (R, d), scaled as those learned from. boxes: (R, 4) float32. labels: (R,) int64 in [0, K).
        A side grows at most 62.5-fold (`boxes.decode`); nothing is clipped to the image.
        Raises ValueError for shapes or labels that do not fit, and if nothing was learned yet.
        """
        self._check_fitted()
        check_boxes(boxes)
        if features.ndim != 2 or len(features) != len(boxes):
            raise ValueError(f"expected {len(boxes)} rows of features, got shape {tuple(features.shape)}")
        self._check_width(features)
        coef, intercept = self.coef_.to(boxes.device).flatten(0, 1), self.intercept_.to(boxes.device)
        deltas = (features.float() @ coef.T).unflatten(1, (self.classes, 4)) + intercept
        refined = torch.where(
            self.fitted_.to(boxes.device)[:, None], decode(boxes, deltas, UNIT_STD), boxes[:, None].expand_as(deltas)
        )
        if labels is None:
            return refined
        if labels.shape != (len(boxes),) or not bool(((labels >= 0) & (labels < self.classes)).all()):
            raise ValueError(f"expected {len(boxes)} labels in [0, {self.classes}), got {labels.tolist()[:5]} ...")
        return refined[torch.arange(len(boxes), device=boxes.device), labels]

    def state(self) -> dict[str, Tensor]:
        """Return what was learned, ready for a safetensors file; raises ValueError if nothing was."""
        self._check_fitted()
        rule = torch.tensor([self.rule.iou, self.rule.penalty])
        own = {"coef": self.coef_, "intercept": self.intercept_, "rows": self.rows_, "fitted": self.fitted_}
        return {"rule": rule, **{name: value.clone() for name, value in own.items()}}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> BoxRegressor:
        """Return the regressor whose `state` this is; raises ValueError if a tensor is missing or has another shape."""
        missing = {"rule", "coef", "intercept", "rows", "fitted"} - state.keys()
        if missing:
            raise ValueError(f"expected the state of a BoxRegressor, got one without {', '.join(sorted(missing))}")
        coef = state["coef"].float()
        count = len(coef)
        shapes = {"rule": (2,), "intercept": (count, 4), "rows": (count,), "fitted": (count,)}
        for name, shape in shapes.items():
            if tuple(state[name].shape) != shape:
                raise ValueError(f"expected {name} of shape {shape}, got {tuple(state[name].shape)}")
        if coef.ndim != 3 or coef.shape[1] != 4:
            raise ValueError(f"expected coef of shape (K, 4, d), got {tuple(coef.shape)}")
        iou, penalty = state["rule"].tolist()
        result = cls(count, RegressionRule(round(iou, 3), penalty))
        result.coef_, result.intercept_ = coef.clone(), state["intercept"].float().clone()
        result.rows_, result.fitted_ = state["rows"].long().clone(), state["fitted"].bool().clone()
        result.n_features_in_ = coef.shape[2]
        return result

    def _check_width(self, features: Tensor) -> None:
        if features.shape[1] != self.n_features_in_:
            raise ValueError(f"expected {self.n_features_in_} features per proposal, got {features.shape[1]}")

    def _check_fitted(self) -> None:
        if not hasattr(self, "coef_"):
            raise ValueError("expected a fitted BoxRegressor, got one without fit or solve")
