"""Tell what a run's folder holds already: nothing, this run, or another one."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .interrupts import held_back
from .progress import progress_bar


class Started(Protocol):
    """Be a run, by the folder it goes to and the digits that tell it from others."""

    @property
    def folder(self) -> Path: ...

    @property
    def key(self) -> str: ...


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Hold what tells a run from others before it has begun, or where it has no state and is done in one go."""

    folder: Path
    key: str


@dataclass(frozen=True, slots=True)
class Place:
    """Hold where a run and its caches go, and what computes it."""

    out: Path
    cache: Path
    device: str
    workers: int
    save_every: float


def step_on_disk(run: Started, record: Mapping[str, Any]) -> int | None:
    """Return the step that the run's folder has reached, None if it is finished.

    Raises ValueError that says what differs if the folder holds another run.
    """
    from detector.checkpoints import read_tensors

    for name, field in (("model.safetensors", "run"), ("state.safetensors", "key")):
        path = run.folder / name
        if not path.exists():
            continue
        metadata = read_tensors(path)[1]
        if metadata.get(field) != run.key:
            got = _difference(run.folder / "run.json", record)
            raise ValueError(
                f"{path}: expected a folder without a run, or with this one, got {got}; choose another --out"
            )
        return None if field == "run" else int(metadata["step"])
    return 0


def _difference(path: Path, record: Mapping[str, Any]) -> str:
    """Say how the run that a file describes differs from a new one."""
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        values = [(key, old["settings"].get(key), value) for key, value in record["settings"].items()]
        changed = [
            f"--{name} {old.get(name, usual)} instead of {record.get(name, usual)}"
            for name, usual in (("task", "detect"), ("start", "nothing"))
            if old.get(name) != record.get(name)
        ]
        changed += [
            f"{key}={json.dumps(was)} instead of {json.dumps(value)}" for key, was, value in values if was != value
        ]
        if old["classes"] != list(record["classes"]):
            more = ", ..." if len(old["classes"]) > 20 else ""
            changed.append(f"the classes {', '.join(old['classes'][:20])}{more}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "another model"
    return f"a run with {', '.join(changed) or 'other photos, annotations or proposals'}"


def next_step(model: Path, data: str, pretrained: bool = False) -> str:
    """Return the commands that use a finished detector, with a test split of the same data set if it has one.

    pretrained: it names no objects yet, and is to be fine-tuned.
    """
    if pretrained:
        return f"next: sppnet train {shlex.quote(data)} --start {shlex.quote(str(model))} --preset code --out RUN"
    name, test = shlex.quote(str(model)), shlex.quote(test_split(data) or "voc:ROOT:SPLIT")
    measure = f"sppnet evaluate --model {name} --data {test}"
    return f"next: {measure}\n   or: sppnet detect PHOTO --model {name} --out found"


def split_names(classes: str | None) -> list[str] | None:
    """Return the names that a user gave, comma separated; None for none."""
    return None if classes is None else [name.strip() for name in classes.split(",")]


def test_split(data: str) -> str | None:
    """Return the name of the test split of a VOC data set other than the one named, None if it has none."""
    kind, _, rest = data.partition(":")
    root, _, split = rest.rpartition(":")
    lists = Path(root) / "ImageSets" / "Main"
    other = next((n for n in ("test", "val") if n != split and (lists / f"{n}.txt").is_file()), None)
    return f"voc:{root}:{other}" if kind == "voc" and other else None


def fill_caches(samples: Sequence[Any], caches: Any, workers: int, title: str) -> None:
    """Compute what a cache (`detector.preparation.Cache`) does not hold yet of images, with a bar.

    The cache's folder was checked before (`folders.check_images`). Ctrl-C stops between two images.
    """
    from detector.preparation import prepare

    missing = [sample for sample in samples if not caches.complete(sample)]
    if not missing:
        return
    with progress_bar(len(samples), title, "image", len(samples) - len(missing)) as bar, held_back() as check:

        def report(count: int) -> None:
            bar.update(count)
            check()

        prepare(missing, caches, workers, report)
