"""Check what `sppnet refit` writes, what it does not replace, and how it counts objects that are found."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import click
import numpy as np
import pytest
import torch

from detector.checkpoints import FORMAT, read_tensors, save_tensors
from detector.cli.before_after import count_found, found_line
from detector.cli.refit_files import beside_examples, check_out, find_examples, write_files
from detector.datasets import Dataset, Sample
from detector.example_files import ExampleOrigin, load_examples
from detector.example_store import ExampleStore
from detector.mining import MiningRule
from detector.structures import Detections, GroundTruth
from detector.svm import LinearSVM

REPORT = {"model": "old", "class": "dog", "false_alarms": {}}


def model(path: Path, value: float, kind: str = FORMAT) -> Path:
    save_tensors({"a": torch.full((2,), value)}, path, {"format": kind, "run": "first"})
    return path


def examples() -> tuple[ExampleStore, ExampleOrigin]:
    store = ExampleStore(1, 4, 9)
    store.add_positives(0, np.ones((2, 4), np.float32))
    return store, ExampleOrigin("first", ("dog",), LinearSVM(), MiningRule())


def contents(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def test_the_files_of_a_refit_know_each_other_and_may_be_replaced(tmp_path: Path) -> None:
    old, out = model(tmp_path / "old.safetensors", 1), tmp_path / "new.safetensors"
    for value in (2.0, 3.0):
        check_out(out, [old])
        written = write_files(out, ({"a": torch.full((2,), value)}, {"format": FORMAT}), examples(), REPORT)
    assert written == [out, tmp_path / "new.json", tmp_path / "new.examples.safetensors"]
    tensors, metadata = read_tensors(out)
    assert tensors["a"].tolist() == [3, 3]
    assert load_examples(find_examples(out))[1].run == metadata["run"]
    assert json.loads(written[1].read_text()) == REPORT
    assert set(contents(tmp_path)) == {"old.safetensors", *(path.name for path in written)}


@pytest.mark.parametrize("fails", ["save_examples", "report"])
def test_an_error_while_writing_changes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    out = tmp_path / "new.safetensors"
    write_files(out, ({"a": torch.zeros(2)}, {}), examples(), REPORT)
    before = contents(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    report = dict(REPORT)
    if fails == "report":
        report["score"] = float("nan")  # type: ignore[assignment]
    else:
        monkeypatch.setattr("detector.example_files.save_examples", full)
    with pytest.raises((OSError, ValueError)):
        write_files(out, ({"a": torch.ones(2)}, {}), examples(), report)
    assert contents(tmp_path) == before


def test_ctrl_c_while_files_are_written_lets_them_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import detector.files

    write = detector.files.write_json

    def interrupted(path: Path, value: object) -> None:
        signal.raise_signal(signal.SIGINT)
        write(path, value)

    monkeypatch.setattr(detector.files, "write_json", interrupted)
    out = tmp_path / "new.safetensors"
    write_files(out, ({"a": torch.ones(2)}, {}), None, REPORT)
    assert set(contents(tmp_path)) == {"new.safetensors", "new.json"}


@pytest.mark.parametrize("text", ['{"images": [], "annotations": []}', "[1]", "no JSON"])
def test_a_json_file_that_is_no_report_is_not_replaced(tmp_path: Path, text: str) -> None:
    old = model(tmp_path / "old.safetensors", 1)
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(click.UsageError, match=r"mine\.json would be replaced by the report"):
        check_out(tmp_path / "mine.safetensors", [old])


def test_what_is_read_and_what_is_no_detector_is_not_replaced(tmp_path: Path) -> None:
    old, kept = model(tmp_path / "old.safetensors", 1), model(tmp_path / "examples.safetensors", 1, "examples")
    link = tmp_path / "link.safetensors"
    link.symlink_to(old)
    for out, said in (
        (old, "expected another file than MODEL"),
        (link, "expected another file than MODEL"),
        (kept, "expected a new file, or a detector to replace"),
    ):
        with pytest.raises(click.UsageError, match=said):
            check_out(out, [old])
    own = model(beside_examples(tmp_path / "new.safetensors"), 1, "examples")
    with pytest.raises(click.UsageError, match="expected another file than what is read"):
        check_out(tmp_path / "new.safetensors", [old, own])


def test_objects_are_found_once_with_at_least_the_score() -> None:
    """Two dogs and a difficult one; three detections on the first dog, one on the second, one on nothing."""
    near, far = [0.0, 0.0, 10.0, 10.0], [50.0, 0.0, 60.0, 10.0]
    boxes = torch.tensor([near, far, [80.0, 0.0, 90.0, 10.0]])
    truth = GroundTruth(boxes, torch.zeros(3, dtype=torch.int64), torch.tensor([False, False, True]), (20, 100))
    dataset = Dataset((Sample("a", Path("a.jpg"), truth),), ("dog",))

    def found(scores: list[float]) -> list[Detections]:
        given = torch.tensor([near, near, far, [30.0, 0.0, 40.0, 10.0]])
        labels = torch.zeros(4, dtype=torch.int64)
        return [Detections(given, torch.tensor(scores), labels, (20, 100), ("dog",))]

    counts = count_found((found([0.9, 0.8, 0.3, 0.2]), found([0.9, 0.8, 0.25, 0.1])), dataset, 0, 0.29)
    assert counts == {"objects": 2, "before": 2, "after": 1}
    assert found_line(counts, "dog", 0.29).endswith("of 2 in --test: 2 before, 1 after")
