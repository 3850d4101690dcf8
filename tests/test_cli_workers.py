"""Check that Ctrl-C in a terminal, which reaches every process of a command, ends `sppnet propose` in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.sources import REPOSITORY
from tests.toy import draw


def children(process: int) -> list[str]:
    """Return the ids of the processes that a process has started; Linux only."""
    path = Path(f"/proc/{process}/task/{process}/children")
    return path.read_text().split() if path.exists() else []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's list of a process's children")
def test_ctrl_c_while_workers_start_is_told_in_one_line(tmp_path: Path) -> None:
    photos, out = draw(tmp_path / "toy", 12) / "JPEGImages", tmp_path / "out"
    command = [sys.executable, str(REPOSITORY / "tools" / "propose.py"), str(photos), "--out", str(out)]
    command += ["--proposals", "quality", "--workers", "2"]
    options = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True, "start_new_session": True}
    with subprocess.Popen(command, **options) as process:  # type: ignore[call-overload]
        deadline = time.monotonic() + 100
        while len(children(process.pid)) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)  # the first worker, and what keeps track of its semaphores
        time.sleep(0.1)  # it is importing
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 130, errors
    assert "stopped; the same command continues" in errors
    assert "Traceback" not in errors
