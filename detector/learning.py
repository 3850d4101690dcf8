"""Keep a training run on disk, so that a killed one continues and ends with the weights of an uninterrupted one.

A run's folder holds `state.safetensors` (to continue from), `metrics.jsonl` and, when it is finished,
`model.safetensors`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from .checkpoints import load_learned, read_tensors, save_tensors
from .features import settings_key
from .files import write_text
from .optimizers import MEMORY, Rates, learning_rate, make_optimizer, set_rate


class Settings(Rates, Protocol):
    """Name what every training run needs to know."""

    @property
    def average(self) -> float: ...

    def to_dict(self) -> dict[str, Any]: ...


class Learner(Protocol):
    """Be a model of which a part learns."""

    class_names: tuple[str, ...]

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def learned_parameters(self) -> dict[str, nn.Parameter]: ...

    def learned_state(self) -> dict[str, Tensor]: ...

    def eval(self) -> Any: ...


Model = TypeVar("Model", bound=Learner)


class LearningRun(ABC, Generic[Model]):
    """Hold a training run: model, optimiser, running average of the weights, step, and the folder they go to.

    key: stands for the data and caches; a folder that holds a run with another key or other settings is refused.
    """

    row: ClassVar[Any]  # the value type of a line of metrics

    def __init__(self, model: Model, config: Settings, folder: Path, key: str):
        self.model, self.folder = model, folder
        self.rates = config
        self.parameters = model.learned_parameters()
        self.optimizer = make_optimizer(self.parameters.values(), config)
        self.memory = MEMORY[config.optimizer]
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.key = settings_key({"data": key, "config": config.to_dict(), "classes": model.class_names})
        self.step = 0
        self.history: list[Any] = []

    @abstractmethod
    def save_model(self, path: Path, extra: Mapping[str, str]) -> None:
        """Write the finished model with some more metadata."""

    @property
    def finished(self) -> Path | None:
        """Return the model that the folder holds if this run has ended there."""
        path = self.folder / "model.safetensors"
        return path if path.exists() and read_tensors(path)[1].get("run") == self.key else None

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
            # in the memory layout of the parameter: the fused optimiser goes through both in the order of memory
            kept = {what: torch.empty_like(parameter).detach() for what in ("average", *self.memory)}
            for what, value in kept.items():
                value.copy_(tensors[f"{what}.{name}"])
            self.average[name] = kept.pop("average")
            state = {self.memory[what]: value for what, value in kept.items()}
            self.optimizer.state[parameter] = state | {"step": torch.tensor(float(metadata["step"]))}
        self.step = int(metadata["step"])
        self.history = [self.row(**row) for row in json.loads(metadata["history"])]

    def save_state(self) -> None:
        """Write all that continuing takes."""
        tensors = {f"weight.{name}": value for name, value in self.model.learned_state().items()}
        for name, parameter in self.parameters.items():
            state = self.optimizer.state[parameter]
            tensors[f"average.{name}"] = self.average[name]
            tensors |= {f"{what}.{name}": state[field] for what, field in self.memory.items()}
        rows = [asdict(row) for row in self.history]
        metadata = {"key": self.key, "step": str(self.step), "history": json.dumps(rows)}
        save_tensors(tensors, self.folder / "state.safetensors", metadata)
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Write the state if Ctrl-C stops what is done inside, between two steps."""
        try:
            yield
        except KeyboardInterrupt:
            self.save_state()
            raise

    def descend(self, loss: Tensor, steps: int) -> None:
        """Take one step of the optimiser down a loss, and move the running average of the weights."""
        set_rate(self.optimizer, learning_rate(self.rates, self.step, steps))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        decay = min(self.rates.average, self.step / (self.step + 9.0)) if self.rates.average else 0.0
        weights = [p.detach() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)

    def finish(self) -> Path:
        """Give the model its averaged weights, write it, and drop the state."""
        load_learned(self.model, self.model.learned_state() | self.average)
        self.model.eval()
        path = self.folder / "model.safetensors"
        self.save_model(path, {"run": self.key, "history": json.dumps([asdict(m) for m in self.history])})
        (self.folder / "state.safetensors").unlink(missing_ok=True)
        return path
