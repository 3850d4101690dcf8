"""Check the steps of both optimisers against their rules written by hand, and the rates over a run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from detector.classifier_config import ClassifierConfig
from detector.config import Config
from detector.optimizers import MEMORY, learning_rate, make_optimizer, set_rate
from tests.noise import settings

SGD = replace(Config(), optimizer="sgd", weight_decay=0.01)


def parameters() -> list[nn.Parameter]:
    """Return a matrix and a vector, float64."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((4, 3), (5,))
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in shapes]


def gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters()]


def step_with(config: Config, rates: list[float]) -> list[nn.Parameter]:
    """Take one step for each rate; return the parameters."""
    learned = parameters()
    optimizer = make_optimizer(learned, config)
    for step, rate in enumerate(rates):
        for parameter, gradient in zip(learned, gradients(step), strict=True):
            parameter.grad = gradient.clone()
        set_rate(optimizer, rate)
        optimizer.step()
    assert all(set(MEMORY[config.optimizer].values()) <= optimizer.state[p].keys() for p in learned)
    return learned


@pytest.mark.parametrize("rates", [[0.1] * 6, [0.1, 0.1, 0.1, 0.01, 0.01, 0.001]])
def test_sgd_is_momentum_written_by_hand(rates: list[float]) -> None:
    """Follow v = 0.9 v + (g + decay w), w = w - rate v; a vector has twice the rate and no decay."""
    learned = step_with(SGD, rates)
    for place, (decay, factor) in enumerate([(0.01, 1), (0.0, 2)]):
        weight, velocity = parameters()[place].detach(), torch.zeros(())
        for step, rate in enumerate(rates):
            velocity = 0.9 * velocity + gradients(step)[place] + decay * weight
            weight = weight - factor * rate * velocity
        torch.testing.assert_close(learned[place].detach(), weight, rtol=1e-13, atol=1e-13)


def test_at_one_rate_sgd_is_caffe_s() -> None:
    """Follow Caffe, whose velocity holds the rate: v = 0.9 v + rate (g + decay w), w = w - v."""
    learned = step_with(SGD, [0.05] * 8)
    for place, (decay, rate) in enumerate([(0.01, 0.05), (0.0, 0.1)]):
        weight, velocity = parameters()[place].detach(), torch.zeros(())
        for step in range(8):
            velocity = 0.9 * velocity + rate * (gradients(step)[place] + decay * weight)
            weight = weight - velocity
        torch.testing.assert_close(learned[place].detach(), weight, rtol=1e-13, atol=1e-13)


def test_adamw_is_its_rule_written_by_hand() -> None:
    """Follow Loshchilov and Hutter 2019 with PyTorch's constants; a vector has the same rate and no decay."""
    rates = [0.1, 0.2, 0.05, 0.05]
    learned = step_with(replace(SGD, optimizer="adamw"), rates)
    for place, decay in enumerate([0.01, 0.0]):
        weight, first, second = parameters()[place].detach(), torch.zeros(()), torch.zeros(())
        for step, rate in enumerate(rates):
            gradient = gradients(step)[place]
            weight = weight * (1 - rate * decay)
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            mean, square = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
            weight = weight - rate * mean / (square.sqrt() + 1e-8)
        torch.testing.assert_close(learned[place].detach(), weight, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "steps", "expected"),
    [
        # He et al. 2015, section 4.1: 1e-4 for 250,000 mini-batches, 1e-5 for 50,000
        ("paper", 300_000, {0: 1e-4, 249_999: 1e-4, 250_000: 1e-5, 299_999: 1e-5}),
        # finetuning/spp_finetune_voc.m: 0.001, 0.0001 and 0.00001, 30,000 each
        ("code", 90_000, {0: 1e-3, 29_999: 1e-3, 30_000: 1e-4, 59_999: 1e-4, 60_000: 1e-5, 89_999: 1e-5}),
    ],
)
def test_rates_of_the_presets_fall_where_the_sources_say(name: str, steps: int, expected: dict[int, float]) -> None:
    assert {s: learning_rate(settings(name), s, steps) for s in expected} == pytest.approx(expected, rel=1e-12)


def test_rates_without_drops_rise_and_fall_as_a_cosine() -> None:
    """Compare with the values of (1 % + 99 % (1 + cos) / 2) at the ends of a run and of its warm-up."""
    config = replace(SGD, learning_rate=0.2)
    seen = [learning_rate(config, step, 4000) for step in (0, 99, 2000, 3999)]
    assert seen == pytest.approx([0.2 / 200, 0.1, 0.2 * 0.505, 0.002], rel=2e-3)
    one_drop = replace(config, rate_drops=(0.5,))
    assert [learning_rate(one_drop, step, 10) for step in (0, 4, 5, 9)] == pytest.approx([0.2, 0.2, 0.02, 0.02])


def test_a_classifier_has_no_choice() -> None:
    """Its settings name the optimiser that it always had."""
    config = ClassifierConfig()
    assert (config.optimizer, config.rate_drops) == ("adamw", ())
    assert type(make_optimizer(parameters(), config)) is torch.optim.AdamW
    assert not {"optimizer", "rate_drops"} & config.to_dict().keys()
