"""Give proposers images of extreme sizes; memory is measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from proposals.registry import make_proposer
from tests.sources import REPOSITORY

PROGRAM = """
import sys
import torch
from proposals.registry import make_proposer

y, x = torch.meshgrid(torch.arange(4000), torch.arange(6000), indexing="ij")
image = torch.stack([(x // 37 * 53 + y // 41 * 29) % 256, (x // 90 * 31) % 256, (y // 80 * 77) % 256]).byte()
image = image[:, : int(sys.argv[2]), : int(sys.argv[3])].contiguous()
del x, y
open("/proc/self/clear_refs", "w").write("5")  # forget the peak of making the image
boxes = make_proposer(sys.argv[1])(image).boxes
assert boxes[:, 2].max() <= image.shape[2] and boxes[:, 3].max() <= image.shape[1] and len(boxes) > 1
status = open("/proc/self/status").read()
print(int(status.split("VmHWM:")[1].split()[0]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc, which only Linux has")
@pytest.mark.parametrize("name", ["single", "fast", "quality", "edgeboxes", "windows"])
@pytest.mark.parametrize("size", [(3000, 4000), (4000, 6000)])
def test_large_images_need_less_than_a_gigabyte(name: str, size: tuple[int, int]) -> None:
    command = [sys.executable, "-c", PROGRAM, name, *map(str, size)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1000, "megabytes"


@pytest.mark.parametrize("name", ["single", "fast", "quality", "edgeboxes", "windows"])
@pytest.mark.parametrize("kind", ["constant", "two colours", "grey noise"])
@pytest.mark.parametrize("size", [(1, 1), (1, 6000), (6000, 1), (7, 5000), (4, 4), (1200, 9)])
def test_odd_images_have_boxes_inside(name: str, kind: str, size: tuple[int, int]) -> None:
    height, width = size
    pixels = np.full((height, width, 3), 90, np.uint8)
    if kind == "two colours":
        pixels[: height // 2, : width // 2 + 1] = (200, 30, 60)
    if kind == "grey noise":
        pixels[:] = np.random.default_rng(0).integers(0, 256, (height, width, 1), np.uint8)
    boxes = make_proposer(name)(torch.from_numpy(pixels).permute(2, 0, 1)).boxes
    assert len(boxes) >= 1
    assert boxes.min() >= 0
    assert bool((boxes[:, 2:] > boxes[:, :2]).all())
    assert bool((boxes[:, 2:] <= torch.tensor([width, height])).all())
