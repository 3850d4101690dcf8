"""Check that freed memory is used again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from detector.fusion import has_onednn

PROGRAM = """
import resource, sys, threading
from detector.allocation import keep_freed_memory

if sys.argv[3] == "keep":  # before there is any other thread, whose memory a later one could be given
    assert keep_freed_memory()
    assert keep_freed_memory()

import torch

def touch(counts):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.empty(int(sys.argv[1]) << 18).fill_(1)
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

def faults():
    counts = []
    if sys.argv[2] == "thread":
        thread = threading.Thread(target=touch, args=[counts])
        thread.start()
        thread.join()
    else:
        touch(counts)
    return counts[0]

torch.set_num_threads(1)
for _ in range(6):  # small pieces settle into holes of their own first
    faults()
print(sorted(faults() for _ in range(9))[4])  # the heap grows by one more piece now and then
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
@pytest.mark.parametrize(("mebibytes", "where"), [(64, "main"), (256, "main"), (64, "thread")])
def test_pages_are_not_cleared_again(mebibytes: int, where: str) -> None:
    """Touch 8 tensors, one after the other: of 64 MiB, 16,384 pages of 4 KiB each, or 32 of 2 MiB."""
    command = [sys.executable, "-c", PROGRAM, str(mebibytes), where]
    fresh, reused = (
        int(subprocess.run([*command, told], capture_output=True, text=True, check=True).stdout)
        for told in ("leave", "keep")
    )
    assert fresh >= 8 * mebibytes / 2
    assert reused < fresh / 10


KERNELS = """
import os, sys, time, torch
from detector.allocation import keep_kernels

os.environ.pop("ONEDNN_PRIMITIVE_CACHE_CAPACITY", None)
if sys.argv[1]:
    os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = sys.argv[1]
keep_kernels(int(sys.argv[2]))
weight, once = torch.zeros(16, 16, 3, 3), [1, 1]
for _ in range(2):
    for width in range(20, 40):
        x = torch.zeros(1, 16, 30, width)
        torch.ops.mkldnn._convolution_pointwise(x, weight, None, once, once, once, 1, "none", [], "")
"""


@pytest.mark.skipif(not has_onednn(), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize(("told", "most", "made"), [("", 512, 20), ("", 4, 40), ("4", 512, 40)])
def test_kernels_are_kept_for_every_size(told: str, most: int, made: int) -> None:
    """Convolve maps of 20 widths, twice, and count what oneDNN says that it made anew; the user's word counts more."""
    command = [sys.executable, "-c", KERNELS, told, str(most)]
    environment = {**os.environ, "ONEDNN_VERBOSE": "2"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if "convolution" in line]
    assert sum(",create:cache_miss," in line for line in lines) == made
    assert sum(",create:cache_hit," in line for line in lines) == 40 - made
