"""Check that freed memory is used again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, threading, torch
from detector.allocation import keep_freed_memory

def touch(counts):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.empty(int(sys.argv[1]) << 18).fill_(1)
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

def faults(where):
    counts = []
    if where == "thread":
        thread = threading.Thread(target=touch, args=[counts])
        thread.start()
        thread.join()
    else:
        touch(counts)
    return counts[0]

torch.set_num_threads(1)
faults("main")
fresh = faults("main")
kept = keep_freed_memory()
again = keep_freed_memory()
faults(sys.argv[2])
print(kept, again, fresh, faults(sys.argv[2]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
@pytest.mark.parametrize(("mebibytes", "where"), [(64, "main"), (256, "main"), (64, "thread")])
def test_pages_are_not_cleared_again(mebibytes: int, where: str) -> None:
    """Touch 8 tensors, one after the other: of 64 MiB, 16,384 pages of 4 KiB each, or 32 of 2 MiB.

    Threads that begin after the call share the first one's memory; an earlier one would keep what it has.
    """
    command = [sys.executable, "-c", PROGRAM, str(mebibytes), where]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    kept, again, fresh, reused = done.stdout.split()
    assert kept == again == "True"
    assert int(fresh) >= 8 * mebibytes / 2
    assert int(reused) < int(fresh) / 10
