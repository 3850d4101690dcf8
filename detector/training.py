"""Train the layers that learn, from cached maps: sample regions, pool them, classify them, step.

A run folder holds `state.safetensors` (to continue from), `metrics.jsonl`, `loss.png` and, when it is finished,
`model.safetensors`. A run that was killed continues from its last state and ends with the weights that an
uninterrupted run ends with: everything random is seeded by the step's number.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from .batches import RegionBatches, Regions
from .checkpoints import load_learned, read_tensors, save_detector, save_tensors
from .config import Config
from .features import settings_key
from .files import write_text
from .regions import RegionDetector

_WARM_UP_STEPS = 200
_MEASURED_IMAGES = 64
_METRIC_STEPS = 20


@dataclass(frozen=True, slots=True)
class Metrics:
    """Hold the means over the last steps: losses, and the part of positives that got their own class."""

    epoch: float
    step: int
    loss: float
    class_loss: float
    box_loss: float
    positives_right: float
    learning_rate: float


@dataclass(slots=True)
class _Losses:
    classes: Tensor
    boxes: Tensor
    coarse: Tensor
    right: float


class Run:
    """Hold a training run: model, optimiser, running average of the weights, step, and the folder they go to.

    key: stands for the data and caches; a folder that holds a run with another key or config is refused.
    """

    def __init__(self, model: RegionDetector, folder: Path, key: str):
        self.model, self.folder = model, folder
        self.config: Config = model.config
        self.parameters = model.learned_parameters()
        matrices = [p for p in self.parameters.values() if p.ndim > 1]
        vectors = [p for p in self.parameters.values() if p.ndim <= 1]  # biases and norms do not decay
        groups = [
            {"params": matrices, "weight_decay": self.config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=self.config.learning_rate, fused=True)
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.key = settings_key({"data": key, "config": self.config.to_dict(), "classes": model.class_names})
        self.step = 0
        self.history: list[Metrics] = []

    def continue_from_disk(self) -> None:
        """Take up the state in the folder, if there is one. Raises ValueError if it is of another run."""
        path = self.folder / "state.safetensors"
        if not path.exists():
            return
        tensors, metadata = read_tensors(path)
        if metadata.get("key") != self.key:
            raise ValueError(f"{self.folder}: expected an empty folder or the same run, got a run of other settings")
        load_learned(self.model, {n: tensors[f"weight.{n}"] for n in self.model.learned_state()})
        for name, parameter in self.parameters.items():
            self.average[name] = tensors[f"average.{name}"]
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(metadata["step"])),
                "exp_avg": tensors[f"first.{name}"],
                "exp_avg_sq": tensors[f"second.{name}"],
            }
        self.step = int(metadata["step"])
        self.history = [Metrics(**row) for row in json.loads(metadata["history"])]

    def save_state(self) -> None:
        """Write all that continuing takes."""
        tensors = {f"weight.{name}": value for name, value in self.model.learned_state().items()}
        for name, parameter in self.parameters.items():
            state = self.optimizer.state[parameter]
            tensors[f"average.{name}"] = self.average[name]
            tensors |= {f"first.{name}": state["exp_avg"], f"second.{name}": state["exp_avg_sq"]}
        rows = [asdict(row) for row in self.history]
        metadata = {"key": self.key, "step": str(self.step), "history": json.dumps(rows)}
        save_tensors(tensors, self.folder / "state.safetensors", metadata)
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def finish(self) -> Path:
        """Give the model its averaged weights, write it, and drop the state."""
        load_learned(self.model, self.model.learned_state() | self.average)
        self.model.eval()
        path = self.folder / "model.safetensors"
        save_detector(self.model, path, {"run": self.key, "history": json.dumps([asdict(m) for m in self.history])})
        (self.folder / "state.safetensors").unlink(missing_ok=True)
        return path


def train(run: Run, batches: RegionBatches, report: Callable[[Metrics, float], None], save_every: float = 60.0) -> Path:
    """Train a run to its end and return the path of the finished model.

    report: is given the newest metrics and the part of the run that is done, every few steps.
    save_every: seconds after which the state is written again.
    """
    finished = run.folder / "model.safetensors"
    if finished.exists() and read_tensors(finished)[1].get("run") == run.key:
        return finished
    run.continue_from_disk()
    if run.step == 0:
        run.model.reduction.measure(batches.first_maps(_MEASURED_IMAGES))
    run.model.train()
    recent: list[_Losses] = []
    saved = time.monotonic()
    for batch in _from_step(run, batches):
        with _bfloat16_products():
            recent.append(_learn(run, batch, batches.steps))
        last = run.step == batches.steps
        if run.step % _METRIC_STEPS == 0 or last:
            run.history.append(_mean(recent, run, batches))
            recent = []
            report(run.history[-1], run.step / batches.steps)
            if time.monotonic() - saved > save_every or last:
                run.save_state()
                saved = time.monotonic()
    return run.finish()


@contextmanager
def _bfloat16_products() -> Iterator[None]:
    """Let products of float32 matrices be computed in bfloat16, summed in float32, where the processor does it fast."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _from_step(run: Run, batches: RegionBatches) -> Iterator[list[Regions]]:
    yield from batches.iterate(run.step)


def _learn(run: Run, batch: Sequence[Regions], steps: int) -> _Losses:
    """Take one step of the optimiser and move the running average of the weights."""
    config = run.config
    torch.manual_seed(config.seed * 1_000_003 + run.step)  # dropout draws from torch's own generator
    losses = batch_losses(run.model, batch)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(config, run.step, steps)
    run.optimizer.zero_grad(set_to_none=True)
    (losses.classes + config.box_weight * losses.boxes + losses.coarse).backward()
    run.optimizer.step()
    run.step += 1
    decay = min(config.average, run.step / (run.step + 9.0)) if config.average else 0.0
    weights = [p.detach() for p in run.parameters.values()]
    torch._foreach_lerp_(list(run.average.values()), weights, 1 - decay)
    return losses


def batch_losses(model: RegionDetector, batch: Sequence[Regions]) -> _Losses:
    """Pool and classify the regions of a batch: cross entropy over K + 1 classes, smooth L1 over positives' boxes.

    The small classifier of a cascade learns the classes, too; what it reads does not learn from it.
    """
    device = model.trunk.mean.device
    parts = [model.pool_regions([m.to(device) for m in part.maps], part.boxes.to(device)) for part in batch]
    pooled, context = (torch.cat(values) for values in zip(*parts, strict=True))
    labels = torch.cat([part.labels for part in batch]).to(pooled.device)
    targets = torch.cat([part.targets for part in batch]).to(pooled.device)
    logits, deltas = model.head(pooled, context)
    if len(labels) == 0:  # photos of which no region can be learned from: a mean over none would be NaN
        nothing = logits.sum()
        return _Losses(nothing, nothing, nothing, math.nan)
    positive = (labels < len(model.class_names)).nonzero()[:, 0]
    own = labels[positive]
    boxes = F.smooth_l1_loss(deltas[positive, own], targets[positive], reduction="sum") / len(labels)
    right = (logits[positive].argmax(dim=1) == own).float()
    coarse = logits.new_zeros(())
    if model.head.coarse is not None:
        coarse = F.cross_entropy(model.head.read_coarse(pooled.detach()[:, model.head.coarse_bins]), labels)
    return _Losses(F.cross_entropy(logits, labels), boxes, coarse, float(right.mean()) if len(right) else math.nan)


def learning_rate(config: Config, step: int, steps: int) -> float:
    """Rise linearly over the first steps, then fall as half a cosine to 1 % of the rate."""
    rise = min(1.0, (step + 1) / min(_WARM_UP_STEPS, max(1, steps // 10)))
    return config.learning_rate * rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _mean(recent: Sequence[_Losses], run: Run, batches: RegionBatches) -> Metrics:
    classes = sum(float(r.classes.detach()) for r in recent) / len(recent)
    boxes = sum(float(r.boxes.detach()) for r in recent) / len(recent)
    right = [r.right for r in recent if not math.isnan(r.right)]
    return Metrics(
        epoch=round(run.step / batches.per_epoch, 4),
        step=run.step,
        loss=classes + run.config.box_weight * boxes,
        class_loss=classes,
        box_loss=boxes,
        positives_right=sum(right) / len(right) if right else 0.0,
        learning_rate=learning_rate(run.config, run.step - 1, batches.steps),
    )
