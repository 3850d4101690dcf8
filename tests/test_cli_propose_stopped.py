"""Check that `sppnet propose` continues where it was stopped or killed, and what it says of workers that die."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detector.images import read_image
from proposals.fast import SelectiveSearch
from proposals.store import ProposalStore, load_proposals
from tests.sources import REPOSITORY
from tests.test_cli_propose import boxes_in, propose
from tests.toy import stop


def draw_blocks(folder: Path, count: int) -> Path:
    """Draw photos that keep `quality` busy for a while."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        blocks = np.kron(generator.integers(0, 256, (24, 36, 3), np.uint8), np.ones((10, 10, 1), np.uint8))
        Image.fromarray(blocks).save(folder / f"{number:02d}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_stopped_or_killed_continues(workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, out = draw_blocks(tmp_path / "photos", 12), tmp_path / "out"
    monkeypatch.setenv("SPPNET_TEST", str(out))  # by which its processes are known
    command = [sys.executable, str(REPOSITORY / "tools" / "propose.py"), str(photos), "--out", str(out)]
    command += ["--proposals", "quality", "--workers", str(workers)]
    code, errors = stop(command, signal.SIGINT, lambda: len(boxes_in(out)) > 1)
    assert (code, errors[-1]) == (130, "interrupted")
    assert "stopped; the same command continues" in errors
    first = boxes_in(out)
    (index,) = (json.loads(path.read_text()) for path in out.rglob("index.json"))
    assert sorted(index.values()) == sorted(first)
    seen = []

    def far_enough() -> bool:
        seen.append(len(running(out)))
        return len(boxes_in(out)) > len(first) + 1

    code, _ = stop(command, signal.SIGKILL, far_enough)
    assert code == -signal.SIGKILL
    assert len(first) < len(boxes_in(out)) < 12
    if Path("/proc/self/environ").exists():
        assert max(seen) >= (3 if workers == 2 else 1), "the command and its workers"
    deadline = time.monotonic() + 20
    while running(out) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not running(out), "workers end with the process that made them"
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    search, after = SelectiveSearch(mode="quality"), boxes_in(out)
    assert len(after) == 12
    assert {name: after[name] for name in first} == first
    folder = ProposalStore(out, search).folder
    for name in ("00", "05", "11"):
        found = load_proposals(folder / f"{name}.npz")
        assert found is not None
        assert torch.equal(found.boxes, search(read_image(photos / f"{name}.png")).boxes)
    assert len(json.loads((folder / "index.json").read_text())) == 12


def running(out: Path) -> list[str]:
    """Return the processes that were started for a folder, by their environment; Linux only, none elsewhere."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if f"SPPNET_TEST={out}".encode() in path.read_bytes().split(b"\0") and path.parent.name != str(os.getpid()):
                found.append(path.parent.name)
    return found


@pytest.mark.slow
def test_a_worker_that_dies_is_told_in_one_sentence(tmp_path: Path) -> None:
    photos, out = draw_blocks(tmp_path / "photos", 12), tmp_path / "out"

    def kill() -> None:
        deadline = time.monotonic() + 100
        while not boxes_in(out) and time.monotonic() < deadline:
            time.sleep(0.01)
        multiprocessing.active_children()[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    result = propose(photos, "--out", out, "--proposals", "quality", "--workers", "2")
    killer.join()
    assert result.exit_code == 1
    message = "sppnet: error: expected workers to live, but one died, perhaps for want of memory; the same command"
    assert next(line for line in result.stderr.splitlines() if line.startswith("sppnet")).startswith(message)
    assert 0 < len(boxes_in(out)) < 12
    assert all(load_proposals(path) is not None for path in out.rglob("*.npz"))
