"""Write and read what support vector machines learned from: the store of their rows, and how they were trained.

One safetensors file, written whole or not at all. It is what training a single class anew takes (`refitting.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .checkpoints import check_format, read_tensors, save_tensors
from .example_store import ExampleStore
from .mining import MiningRule
from .svm import LinearSVM

FORMAT = "sppnet-examples-1"


@dataclass(frozen=True, slots=True, eq=False)
class ExampleOrigin:
    """Tell how machines were trained: run: key of the run; the K class names; parameters of machines and of mining."""

    run: str
    class_names: tuple[str, ...]
    svm: LinearSVM
    rule: MiningRule


def save_examples(path: Path, store: ExampleStore, origin: ExampleOrigin) -> None:
    """Write a store and where it comes from."""
    metadata = {
        "format": FORMAT,
        "run": origin.run,
        "class_names": json.dumps(origin.class_names),
        "svm": json.dumps(origin.svm.get_params()),
        "rule": json.dumps(asdict(origin.rule)),
        "scale": json.dumps(store.scale),
    }
    save_tensors(store.to_tensors(), path, metadata)


def load_examples(path: Path) -> tuple[ExampleStore, ExampleOrigin]:
    """Read a store and where it comes from.

    Raises ValueError that names the file if it is damaged or is of another kind, OSError if it is not there.
    """
    tensors, metadata = read_tensors(path)
    check_format(path, metadata, "file of examples", FORMAT)
    values = {name: _parse(metadata, name, path) for name in ("class_names", "svm", "rule", "scale")}
    try:
        store = ExampleStore.from_tensors(tensors, float(values["scale"]))
        svm, rule = LinearSVM(**values["svm"]), MiningRule(**values["rule"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    names = values["class_names"]
    if not isinstance(names, list) or len(names) != len(store.alpha):
        raise ValueError(f"{path}: expected {len(store.alpha)} class names, got {json.dumps(names)}")
    return store, ExampleOrigin(metadata.get("run", ""), tuple(map(str, names)), svm, rule)


def _parse(metadata: Mapping[str, str], name: str, path: Path) -> Any:
    """Return a value of the metadata. Raises ValueError that names the file if it is missing or no JSON."""
    try:
        return json.loads(metadata[name])
    except (KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected {name} as JSON, got {error}") from error
