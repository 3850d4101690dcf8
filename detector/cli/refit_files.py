"""Name, check and write the files of `sppnet refit`: the new model, its report, and what its machines learned from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .interrupts import held_back

if TYPE_CHECKING:
    from torch import Tensor

    from detector.class_refitting import NewRow
    from detector.example_files import ExampleOrigin
    from detector.example_store import ExampleStore

    Store = tuple[ExampleStore, ExampleOrigin]

_EXAMPLES = "examples.safetensors"


def beside_examples(model: Path) -> Path:
    """Return the file that keeps the examples of a refitted model."""
    return model.with_name(f"{model.stem}.{_EXAMPLES}")


def find_examples(model: Path) -> Path:
    """Return the file beside a model that keeps what its machines learned from. Raises ValueError if there is none."""
    beside = (beside_examples(model), model.with_name(_EXAMPLES))
    found = next((path for path in beside if path.is_file()), None)
    if found is None:
        raise ValueError(f"expected {beside[1]}, which training writes, or --examples FILE, got neither")
    return found


def check_out(out: Path, read: Sequence[Path]) -> None:
    """Raise click.UsageError if a file to be written is one that is read, or one that is there for something else.

    out: the new model. read: the files of the model and of its examples.
    """
    from detector.checkpoints import FORMAT, read_tensors

    for path in (out, beside_examples(out)):
        if path.exists() and any(other.exists() and os.path.samefile(path, other) for other in read):  # noqa: PTH121
            what = "MODEL" if path == out and os.path.samefile(path, read[0]) else "what is read"  # noqa: PTH121
            raise click.UsageError(f"--out: expected another file than {what}, got {path}")
    if out.exists() and read_tensors(out)[1].get("format") != FORMAT:
        raise click.UsageError(f"--out: expected a new file, or a detector to replace, got another file, {out}")
    report = out.with_suffix(".json")
    if report.exists() and not _is_report(report):
        raise click.UsageError(f"--out: {report} would be replaced by the report, and it is none; choose another name")


def _is_report(path: Path) -> bool:
    """Tell whether a file is the report of a refit."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"model", "class", "false_alarms"} <= found.keys()


def replace_row(tensors: Mapping[str, Tensor], kind: str, label: int, row: NewRow) -> dict[str, Tensor]:
    """Return the tensors of a model's file with another row of one class; all else is the same bit for bit."""
    from detector.class_refitting import LAYERS

    changed = dict(tensors)
    for part, values in (("weight", row.weight), ("bias", row.bias)):
        name = f"{LAYERS[kind]}.{part}"
        changed[name] = tensors[name].clone()
        changed[name][label] = values.to(changed[name].dtype)
        if not bool(changed[name][label].isfinite().all()):
            raise ValueError(f"expected weights that {changed[name].dtype} can hold, got larger ones")
    return changed


def write_files(
    out: Path, model: tuple[Mapping[str, Tensor], Mapping[str, str]], store: Store | None, report: Mapping[str, Any]
) -> list[Path]:
    """Write the model, the report and the examples, whose name for the run is the model's; return their paths.

    All are written beside their places before the first takes its place; the model is the last that does. Ctrl-C comes
    too late here.
    """
    from dataclasses import replace

    from detector.checkpoints import save_tensors
    from detector.example_files import save_examples
    from detector.features import settings_key, values_key
    from detector.files import replacing, write_json

    tensors, metadata = model
    run = settings_key({"refitted": metadata.get("run", ""), "values": values_key(tensors)})
    written = [out, out.with_suffix(".json")] + ([beside_examples(out)] if store else [])
    with held_back(), ExitStack() as places:
        beside = [places.enter_context(replacing(path)) for path in written]  # they take their places in reverse
        save_tensors(tensors, beside[0], {**metadata, "run": run})
        write_json(beside[1], report)
        if store:
            save_examples(beside[2], store[0], replace(store[1], run=run))
    return written
