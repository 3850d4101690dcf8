"""Measure the mean norm of features to which they are scaled (Girshick et al. 2014's code), without keeping them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .dual_descent import squared_norms
from .svm import feature_matrix


@dataclass(slots=True)
class MeanNorm:
    """Sum up the Euclidean norms of rows that are not kept; total: their sum, count: how many there were."""

    total: float = 0.0
    count: int = 0

    def add(self, features: NDArray[np.float32]) -> None:
        """Add rows (R, d); there may be none."""
        if len(features):
            self.total += float(np.sqrt(squared_norms(feature_matrix(features))).sum())
            self.count += len(features)

    def factor(self, norm: float) -> float:
        """Return the factor that gives the rows this mean norm; raises ValueError for no row, or zeros alone."""
        if not self.count:
            raise ValueError("expected at least one region to measure the norm of features, got none")
        if self.total <= 0 or norm <= 0:
            raise ValueError(f"expected features that are not all 0 and a positive norm, got {self.total} and {norm}")
        return norm * self.count / self.total
