"""Check the refit of one row of a softmax layer against autograd on the whole layer's probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import expit
from torch import Tensor

from detector.last_layer import RowExamples, RowHold, fit_row, margins_of

CLASSES, WIDTH, LABEL, LIMIT = 4, 6, 2, 0.2


def layer() -> tuple[Tensor, Tensor]:
    """Return weight (K + 1, d) and bias (K + 1,) of a layer, float64."""
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(CLASSES + 1, WIDTH, generator=generator, dtype=torch.float64)
    return weight, torch.randn(CLASSES + 1, generator=generator, dtype=torch.float64)


def regions(count: int = 80) -> tuple[Tensor, Tensor]:
    """Return features (R, d) that float32 holds, and labels (R,) that they say little about."""
    generator = torch.Generator().manual_seed(7)
    features = torch.randn(count, WIDTH, generator=generator).relu()
    return features.double(), torch.randint(CLASSES + 1, (count,), generator=generator)


def examples(features: Tensor, objects: Tensor) -> RowExamples:
    weight, bias = layer()
    margins = margins_of((features @ weight.T + bias).numpy(), LABEL)
    return RowExamples(features.float().numpy(), margins, objects.numpy())


def known() -> Tensor:
    """Return features (9, d) of regions that were known before: fewer than would hold the row in all directions."""
    return torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(9)).relu().double().repeat(3, 1)


def held(penalty: float, weight: float) -> RowHold:
    """Return a hold on the known regions, which come in two parts."""
    rows = known().float().numpy()
    return RowHold.of(WIDTH, penalty).add(rows[:4], weight).add(rows[4:], weight)


def whole_loss(row: Tensor, objects: Tensor, features: Tensor, costs: tuple[float, float]) -> Tensor:
    """Return what another row costs: by the probabilities of the whole layer, and by what has changed.

    costs: of the change itself, and of what it does to the log-odds of known regions: all logits but one stay.
    """
    (penalty, held_by), (weight, bias) = costs, layer()
    old = torch.cat([weight[LABEL], bias[LABEL : LABEL + 1]])
    chosen = torch.arange(CLASSES + 1) == LABEL
    logits = torch.where(chosen, (features @ row[:-1] + row[-1])[:, None], features @ weight.T + bias)
    probability = logits.softmax(dim=1)[:, LABEL]
    odds = probability / (1 - probability) * (1 - LIMIT) / LIMIT
    cost = torch.where(objects, -probability.log(), odds.log().clamp(min=0).square() / 2)
    apart = margins_by(known(), row) - margins_by(known(), old)
    return cost.sum() + penalty / 2 * (row - old).square().sum() + held_by / 2 * apart.square().sum()


def margins_by(features: Tensor, row: Tensor) -> Tensor:
    """Return the log-odds of the class (R,) with another row."""
    weight, bias = layer()
    others = (features @ weight.T + bias)[:, torch.arange(CLASSES + 1) != LABEL]
    return features @ row[:-1] + row[-1] - others.logsumexp(dim=1)


def new_row(change: np.ndarray) -> Tensor:
    weight, bias = layer()
    return torch.cat([weight[LABEL], bias[LABEL : LABEL + 1]]) + torch.from_numpy(change)


def test_the_margin_is_the_log_odds_of_the_class() -> None:
    features, _ = regions()
    weight, bias = layer()
    logits = features @ weight.T + bias
    probability = logits.softmax(dim=1)[:, LABEL]
    expected = probability.log() - (1 - probability).log()
    np.testing.assert_allclose(margins_of(logits.numpy(), LABEL), expected.numpy(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("costs", [(0.01, 0.0), (1.0, 0.3), (30.0, 0.0), (0.01, 20.0)])
@pytest.mark.parametrize("begin", [False, True])
def test_the_gradient_of_what_the_whole_layer_costs_is_zero(costs: tuple[float, float], begin: bool) -> None:
    features, labels = regions()
    objects = labels == LABEL
    start = np.random.default_rng(3).standard_normal(WIDTH + 1) if begin else None
    fit = fit_row(examples(features, objects), held(*costs), LIMIT, start)
    row = new_row(fit.change).requires_grad_()
    loss = whole_loss(row, objects, features, costs)
    (slope,) = torch.autograd.grad(loss, row)
    (first,) = torch.autograd.grad(
        whole_loss(old := new_row(0 * fit.change).requires_grad_(), objects, features, (0, 0)), old
    )
    loss = loss.detach()
    assert float(slope.abs().max()) < 1e-5 * float(first.abs().max())
    for _ in range(20):  # the problem is convex: a step anywhere is a step up
        near = row.detach() + 0.01 * torch.randn(row.shape, dtype=torch.float64)
        assert float(whole_loss(near, objects, features, costs)) > float(loss)
    assert fit.after < fit.before == pytest.approx(float(whole_loss(old.detach(), objects, features, costs)), rel=1e-9)
    assert fit.after == pytest.approx(float(loss), rel=1e-9)


def test_a_bias_alone_solves_its_equation() -> None:
    margins, objects = np.array([-3.0, -1.0, 0.5, 2.0]), np.array([False, True, False, True])
    fit = fit_row(RowExamples(np.zeros((4, 3), np.float32), margins, objects), RowHold.of(3, 0.5), 0.5)

    def slope(b: float) -> float:
        """Return that of the sum: for a limit of 0.5, log-odds of 0, the first example is below it, the third above."""
        return -expit(1 - b) - expit(-2 - b) + max(-3 + b, 0) + max(0.5 + b, 0) + 0.5 * b

    expected = brentq(slope, -10, 10, xtol=1e-13)
    assert fit.change[-1] == pytest.approx(expected, abs=1e-6)
    assert not fit.change[:-1].any()


def test_what_lies_below_the_limit_changes_nothing() -> None:
    features, _ = regions()
    whole = examples(features, torch.zeros(len(features)).bool())
    likely = whole.probabilities(np.zeros(WIDTH + 1))
    low = whole.take(likely < LIMIT)
    assert 0 < len(low) < len(whole)
    assert not fit_row(low, RowHold.of(WIDTH, 1e-3), LIMIT).change.any()
    assert fit_row(whole, RowHold.of(WIDTH, 1e-3), LIMIT).change.any()


def test_a_large_penalty_holds_the_row() -> None:
    features, labels = regions()
    change = fit_row(examples(features, labels == LABEL), RowHold.of(WIDTH, 1e9), LIMIT).change
    assert 0 < np.linalg.norm(change) < 1e-6
    free = fit_row(examples(features, labels == LABEL), RowHold.of(WIDTH, 1.0), LIMIT).change
    assert np.linalg.norm(change) < np.linalg.norm(free)


def test_a_large_weight_holds_known_regions_and_nothing_else() -> None:
    """The row still moves where known regions say nothing."""
    features, labels = regions()
    some = examples(features, labels == LABEL)
    free, fixed = (fit_row(some, held(0.1, weight), LIMIT).change for weight in (0.0, 1e7))
    moved = [np.abs(known().numpy() @ change[:-1] + change[-1]).max() for change in (free, fixed)]
    assert moved[0] > 0.1
    assert moved[1] < 1e-4
    assert np.linalg.norm(fixed) > 0.1 * np.linalg.norm(free)
    assert held(0.1, 1.0).known == 9


def test_examples_are_joined_and_taken_in_order() -> None:
    features, labels = regions()
    whole = examples(features, labels == LABEL)
    parts = [whole.take(np.arange(30)), whole.take(np.arange(80) >= 30)]
    joined = RowExamples.join(parts)
    for name in ("features", "margins", "objects"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))


@pytest.mark.parametrize("number", [0.0, -1.0, float("nan"), float("inf")])
def test_another_penalty_or_weight_is_refused(number: float) -> None:
    with pytest.raises(ValueError, match="expected a positive penalty"):
        RowHold.of(WIDTH, number)
    if number == 0:
        assert held(2.0, number).matrix.tolist() == (2 * np.eye(WIDTH + 1)).tolist()
        return
    with pytest.raises(ValueError, match="expected a weight of at least 0"):
        held(1.0, number)


def test_numbers_that_are_not_finite_are_refused() -> None:
    features, labels = regions()
    whole, wrong = examples(features, labels == LABEL), known().float().numpy()
    wrong[0, 0], whole.features[3, 1] = np.inf, np.nan
    with pytest.raises(ValueError, match="expected finite features and margins"):
        fit_row(whole, RowHold.of(WIDTH, 1.0), LIMIT)
    for limit in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="expected a limit in"):
            fit_row(whole, RowHold.of(WIDTH, 1.0), limit)
    with pytest.raises(ValueError, match="expected finite features, got NaN or infinity"):
        RowHold.of(WIDTH, 1.0).add(wrong, 1.0)
