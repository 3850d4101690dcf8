"""Write and read detectors and training states: one safetensors file each, written whole or not at all.

A detector file holds the learned layers in float16 and, as metadata, the config, the class names, the trunk's name,
and the version of the package. The trunk's own weights come from where they are published.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .config import Config, config_from_dict
from .files import replacing
from .machines import MachineNet
from .rcnn import RCNN
from .regions import RegionDetector
from .sppnet import SPPNet

FORMAT = "sppnet-1"
SHIPPED = Path(__file__).parent / "models"


def list_models() -> list[str]:
    """Return the names of the detectors that come with the package."""
    names = sorted(path.stem for path in SHIPPED.glob("*.safetensors"))
    return [name for name in names if not name.endswith("-classifier")]


def build_detector(config: Config, class_names: Sequence[str]) -> RegionDetector:
    """Build the kind of detector that a config names, with random learned layers."""
    kinds: dict[str, type[RegionDetector]] = {"sppnet": SPPNet, "rcnn": RCNN, "svm": MachineNet}
    return kinds[config.detector](config, class_names)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all."""
    with replacing(path) as beside:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, beside, dict(metadata))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file. Raises ValueError that names the file if it is damaged, OSError if it is not there."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a safetensors file, got nothing there")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a whole safetensors file, got a damaged one ({error})") from error


def save_detector(model: RegionDetector, path: Path, extra: Mapping[str, str] | None = None) -> None:
    """Write a detector's learned layers, float16, with all it takes to use them again."""
    metadata = {
        "format": FORMAT,
        "config": json.dumps(model.config.to_dict()),
        "class_names": json.dumps(model.class_names),
        "trunk": model.config.trunk,
        "version": version_text(),
        **(extra or {}),
    }
    save_tensors({name: value.half() for name, value in model.learned_state().items()}, path, metadata)


def load_detector(name: str | Path, device: str | torch.device = "cpu", engine: str = "auto") -> RegionDetector:
    """Load a detector that comes with the package by its name, or any by its file.

    engine: how it computes (`detector.engines`); the default is the fastest that this machine can run.
    Raises ValueError that names the file, or the known names, and says what was expected.
    """
    path = find_model(name, "model", list_models())
    tensors, metadata = read_tensors(path)
    check_format(path, metadata, "detector", FORMAT)
    model = _build(metadata, path)
    load_described(model, tensors, path)
    model = model.to(torch.device(device)).eval()
    model.use_engine(engine)
    return model


def find_model(name: str | Path, what: str, known: Sequence[str]) -> Path:
    """Return the file of a model that comes with the package, or the file that is named. Raises ValueError for neither.

    what: the word for such models. known: the names of those that come with the package.
    """
    path = SHIPPED / f"{name}.safetensors"
    if path.is_file():
        return path
    path = Path(name)
    if path.suffix != ".safetensors" and not path.is_file():
        raise ValueError(f"expected a {what} among {', '.join(known)} or a .safetensors file, got {name}")
    return path


def check_format(path: Path, metadata: Mapping[str, str], what: str, wanted: str) -> None:
    """Raise ValueError unless a file says that it is of the wanted format."""
    got = metadata.get("format", "a file without one")
    if got != wanted:
        raise ValueError(f"{path}: expected a {what} of format {wanted}, got {got}")


def load_described(model: Learned, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put a file's values into the model that the file describes. Raises ValueError if they do not fit."""
    try:
        load_learned(model, tensors)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{path}: expected the layers that its config describes, got {error}") from error


def _build(metadata: Mapping[str, str], path: Path) -> RegionDetector:
    """Make the detector that metadata describes. Raises ValueError that names the file if they do not describe one."""
    try:
        settings, names = json.loads(metadata["config"]), json.loads(metadata["class_names"])
    except (KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected config and class_names as JSON, got {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: expected a JSON object as config, got {type(settings).__name__}")
    check_names(names, path)
    config = config_from_dict(settings, str(path))
    try:
        return build_detector(config, names)
    except ValueError as error:  # the trunk or one of its layers is unknown here
        raise ValueError(f"{path}: {error}") from error


def check_names(names: Any, path: Path) -> None:
    """Raise ValueError unless what a file gives as class_names is a list of names."""
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: expected a list of names as class_names, got {json.dumps(names)}")


class Learned(Protocol):
    """Have values that are learned."""

    def learned_state(self) -> dict[str, Tensor]: ...


def load_learned(model: Learned, tensors: Mapping[str, Tensor]) -> None:
    """Put saved values into a model's learned layers. Raises KeyError or RuntimeError if they do not fit."""
    with torch.no_grad():
        for name, value in model.learned_state().items():
            if tensors[name].shape != value.shape:
                raise RuntimeError(f"{name} of shape {tuple(tensors[name].shape)} for {tuple(value.shape)}")
            value.copy_(tensors[name])


def version_text() -> str:
    """Return the version of the package, `unknown` if it is not installed."""
    try:
        return version("sppnet")
    except PackageNotFoundError:
        return "unknown"
