"""Write and read classifiers: one safetensors file each, written whole or not at all.

The file holds the learned layers in float16 and, as metadata, the config, the class names and whether an image may show
several classes. A trunk that did not learn is not in it: its weights come from where they are published.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from .checkpoints import (
    SHIPPED,
    check_format,
    check_names,
    find_model,
    load_described,
    read_tensors,
    save_tensors,
    version_text,
)
from .classification import Classifier
from .classifier_config import ClassifierConfig, classifier_config_from_dict

FORMAT = "sppnet-classifier-1"
SUFFIX = "-classifier"  # of the names of classifiers that come with the package


def list_classifiers() -> list[str]:
    """Return the names of the classifiers that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob(f"*{SUFFIX}.safetensors"))


def save_classifier(model: Classifier, path: Path, extra: Mapping[str, str] | None = None) -> None:
    """Write a classifier's learned layers, float16, with all it takes to use them again."""
    metadata = {
        "format": FORMAT,
        "config": json.dumps(model.config.to_dict()),
        "class_names": json.dumps(model.class_names),
        "multi_label": json.dumps(model.multi_label),
        "version": version_text(),
        **(extra or {}),
    }
    save_tensors({name: value.detach().half() for name, value in model.learned_state().items()}, path, metadata)


def load_classifier(name: str | Path, device: str | torch.device = "cpu", engine: str = "auto") -> Classifier:
    """Load a classifier that comes with the package by its name, or any by its file.

    engine: how its trunk computes (`detector.engines`); the default is the fastest that this machine can run.
    Raises ValueError that names the file, or the known names, and says what was expected.
    """
    path = find_model(name, "classifier", list_classifiers())
    tensors, metadata = read_tensors(path)
    check_format(path, metadata, "classifier", FORMAT)
    model = _build(metadata, path)
    load_described(model, tensors, path)
    model = model.to(torch.device(device)).eval()
    model.use_engine(engine)
    return model


def _build(metadata: Mapping[str, str], path: Path) -> Classifier:
    """Make the classifier that metadata describes. Raises ValueError that names the file if they describe none."""
    try:
        settings, names = json.loads(metadata["config"]), json.loads(metadata["class_names"])
        multi_label = json.loads(metadata["multi_label"])
    except (KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected config, class_names and multi_label as JSON, got {error}") from error
    if not isinstance(settings, dict) or not isinstance(multi_label, bool):
        raise ValueError(f"{path}: expected a JSON object as config and true or false as multi_label, got others")
    check_names(names, path)
    config: ClassifierConfig = classifier_config_from_dict(settings, str(path))
    try:
        return Classifier(config, names, multi_label)
    except ValueError as error:  # the trunk or its layer is unknown here
        raise ValueError(f"{path}: {error}") from error
