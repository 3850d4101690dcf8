"""Choose how weights step down their gradients, and how fast over a run: AdamW, or the paper's SGD with momentum."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import nn

MOMENTUM = 0.9
WARM_UP_STEPS = 200
# What an optimiser remembers of every parameter, by its name in a training state.
MEMORY: Mapping[str, Mapping[str, str]] = {
    "adamw": {"first": "exp_avg", "second": "exp_avg_sq"},
    "sgd": {"momentum": "momentum_buffer"},
}
_BIAS_RATE = {"adamw": 1.0, "sgd": 2.0}


class Rates(Protocol):
    """Name the settings of an optimiser."""

    @property
    def optimizer(self) -> str: ...

    @property
    def learning_rate(self) -> float: ...

    @property
    def rate_drops(self) -> tuple[float, ...]: ...

    @property
    def weight_decay(self) -> float: ...


def make_optimizer(parameters: Iterable[nn.Parameter], rates: Rates) -> torch.optim.Optimizer:
    """Make the optimiser that settings name. Weight decay is for matrices: biases and norms do not decay.

    `sgd` has a momentum of 0.9 and learns biases and norms at twice the rate, as the networks of Caffe are defined
    (`blobs_lr: 1, 2` in the authors' code).
    """
    values = list(parameters)
    groups = [
        {"params": [p for p in values if p.ndim > 1], "weight_decay": rates.weight_decay, "factor": 1.0},
        {"params": [p for p in values if p.ndim <= 1], "weight_decay": 0.0, "factor": _BIAS_RATE[rates.optimizer]},
    ]
    if rates.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rates.learning_rate, momentum=MOMENTUM, fused=True)
    return torch.optim.AdamW(groups, lr=rates.learning_rate, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give an optimiser of `make_optimizer` a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def learning_rate(rates: Rates, step: int, steps: int) -> float:
    """Return the learning rate of a step of a run.

    With `rate_drops` it falls tenfold at each of these parts of the run; else it rises linearly over the first steps,
    then falls as half a cosine to 1 % of the rate.
    """
    if rates.rate_drops:
        return rates.learning_rate * 10.0 ** -sum(step >= round(part * steps) for part in rates.rate_drops)
    rise = min(1.0, (step + 1) / min(WARM_UP_STEPS, max(1, steps // 10)))
    return rates.learning_rate * rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
