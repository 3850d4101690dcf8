"""Check that `sppnet benchmark` continues where it was stopped or killed, and leaves nothing half written."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from tests.sources import REPOSITORY
from tests.test_cli_benchmark import benchmark, models  # noqa: F401 - a fixture
from tests.toy import draw, stop


@pytest.mark.slow
def test_a_race_that_was_stopped_or_killed_continues(models: list[str], tmp_path: Path) -> None:  # noqa: F811
    """Stop it with Ctrl-C, then with SIGKILL; what the same command then reports holds the runs that were done."""
    toy, out = draw(tmp_path / "toy", 20), tmp_path / "out"
    program = [sys.executable, str(REPOSITORY / "tools" / "benchmark.py")]
    few = [
        *models,
        "--data",
        f"voc:{toy}:train",
        "--images",
        "12",
        "--detectors",
        "sppnet,rcnn",
        "--max-proposals",
        "60",
    ]
    few += ["--proposals", "single", "--no-memory", "--out", str(out)]
    journal = out / "unfinished" / "race.jsonl"

    def lines() -> list[bytes]:
        """Return the runs in the journal, whose first line says of what race; the last may be half written."""
        return journal.read_bytes().split(b"\n")[1:-1] if journal.exists() else []

    code, errors = stop([*program, *few], signal.SIGINT, lambda: len(lines()) > 2)
    assert (code, errors[-1]) == (130, "interrupted")
    assert "stopped; the same command continues" in errors
    first = lines()
    assert 2 < len(first) < 24
    code, _ = stop([*program, *few], signal.SIGKILL, lambda: len(lines()) > 16)
    assert code == -signal.SIGKILL
    second = lines()
    assert second[: len(first)] == first
    assert len(second) < 24
    assert [path.name for path in out.iterdir()] == ["unfinished"]
    spoil(journal, len(second))
    done = benchmark(*few)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in out.iterdir()) == ["benchmark.json", "benchmark.png", "report.html"]
    found = json.loads((out / "benchmark.json").read_text())
    assert len(found["images"]) == 12
    assert found["detectors"]["sppnet"]["stages"]["conv"] == 1000, "the median of 12 runs, of which 8 were done before"


def spoil(journal: Path, count: int) -> None:
    """Let the runs that were done have taken 1,000 seconds, so that it shows if they are not made again."""
    head, *lines = journal.read_bytes().split(b"\n")[: count + 1]
    rows = [json.loads(line) for line in lines]
    assert sum(name.startswith("sppnet ") for name, _ in rows) >= 8
    for _, run in rows:
        run["stages"]["conv"] = 1000.0
    journal.write_bytes(b"\n".join([head, *(json.dumps(row).encode() for row in rows)]) + b"\n")
