"""Say how far a VOC mean average precision may be trusted: the bootstrap over images (Efron 1979).

Images are drawn with replacement. Since a detection is matched within its own image, what it is (hit or false
positive) does not depend on the draw: only how often it counts does, so matching is done once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..structures import Detections, GroundTruth
from .voc import METRICS, THRESHOLDS, Array, Matches, match_all

_CELLS = 2_000_000  # draws are taken in groups of about this many detections, to bound memory


def bootstrap_map(
    detections: Sequence[Detections],
    truths: Sequence[GroundTruth],
    class_names: Sequence[str],
    metric: str = "voc07",
    samples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the 95 % interval (2.5 % and 97.5 % quantile) of the mean average precision at IoU 0.5 over images.

    A class that has no object in a draw is left out of the mean of that draw, as one without ground truth is left
    out of the mean of a data set; a draw without any object is left out altogether. Both ends are NaN if there is no
    ground truth. Raises ValueError for an unknown metric or less than one sample.
    """
    weights = _draws(len(truths), metric, samples, seed)
    return interval(_resampled_means(match_all(detections, truths, class_names), weights, metric))


def bootstrap_difference(
    pair: tuple[Sequence[Detections], Sequence[Detections]],
    truths: Sequence[GroundTruth],
    class_names: Sequence[str],
    metric: str = "voc07",
    samples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two detectors' mean average precision, the first minus the second.

    pair: what each found in the same images. Both are measured on the same draws of images, so that what makes a draw
    easy or hard for both cancels out. Else as `bootstrap_map`.
    """
    weights = _draws(len(truths), metric, samples, seed)
    first, second = (_resampled_means(match_all(d, truths, class_names), weights, metric) for d in pair)
    return interval(first - second)


def _draws(count: int, metric: str, samples: int, seed: int) -> Array:
    """Return `draw_images`; raises ValueError for an unknown metric, too."""
    if metric not in METRICS or samples < 1:
        known = ", ".join(METRICS)
        raise ValueError(f"expected a metric among {known} and at least one sample, got {metric} and {samples}")
    return draw_images(count, samples, seed)


def draw_images(count: int, samples: int, seed: int) -> Array:
    """Return how often each draw holds each of `count` images, (samples, count) int64.

    Raises ValueError for less than one sample.
    """
    if samples < 1:
        raise ValueError(f"expected at least one sample, got {samples}")
    if count == 0:
        return np.zeros((samples, 0), dtype=np.int64)
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=samples)


def _resampled_means(matches: Sequence[Matches], weights: Array, metric: str) -> Array:
    """Return the mean average precision of every draw that holds an object; the truth alone decides which these are."""
    if not any(m.objects.any() for m in matches):
        return np.empty(0)
    aps = np.stack([resampled_ap(m, weights, metric) for m in matches])
    known = ~np.isnan(aps)
    present = known.any(axis=0)
    means: Array = np.where(known, aps, 0).sum(axis=0)[present] / known.sum(axis=0)[present]
    return means


def interval(values: Array) -> tuple[float, float]:
    """Return the 2.5 % and the 97.5 % quantile, NaN of no values."""
    if len(values) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def resampled_ap(matches: Matches, weights: Array, metric: str) -> Array:
    """Return the average precision of one class in every draw.

    weights: (S, N) int64, how often each draw holds each image. The result is (S,) float64, NaN where a draw has no
    object of the class.
    """
    step = max(1, _CELLS // max(1, len(matches.images)))
    parts = [_group_ap(matches, weights[i : i + step], metric) for i in range(0, len(weights), step)]
    return np.concatenate(parts)


def _group_ap(matches: Matches, weights: Array, metric: str) -> Array:
    """Do the work of `resampled_ap` for a few draws.

    Precision is needed at hits only: between two of them it falls while recall stands still. An image drawn n times
    makes n equal steps; the largest precision at or above every recall is the one after the last of them.
    """
    objects = weights @ matches.objects
    repeats = weights[:, matches.images]
    at_hits = np.flatnonzero(matches.hits)
    total = np.cumsum(repeats, axis=1)[:, at_hits]
    hits = np.cumsum(repeats[:, at_hits], axis=1)
    precision = hits / np.maximum(total, 1)
    recall = hits / np.maximum(objects, 1)[:, None]
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    if metric == "voc10":
        ap = (np.diff(recall, axis=1, prepend=0.0) * envelope).sum(axis=1)
    else:
        padded = np.concatenate([envelope, np.zeros((len(weights), 1))], axis=1)
        firsts = np.stack([(recall < threshold).sum(axis=1) for threshold in THRESHOLDS], axis=1)
        ap = np.take_along_axis(padded, firsts, axis=1).sum(axis=1) / len(THRESHOLDS)
    return np.where(objects > 0, ap, np.nan)
