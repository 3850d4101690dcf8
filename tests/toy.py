"""Give tests drawn images, caches of them and small detectors, and run the command line on them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from detector.backbones import Tap, Trunk
from detector.config import Config
from detector.datasets import open_dataset
from detector.features import FeatureStore
from detector.preparation import Caches
from detector.sppnet import SPPNet
from proposals.registry import make_proposer
from proposals.store import ProposalStore
from tests.sources import REPOSITORY
from tests.test_datasets import load_tool

CLASSES = ("circle", "square", "triangle")
TOY = f"voc:{REPOSITORY / 'data' / 'toy'}:train"
SETTINGS = REPOSITORY / "configs" / "toy.yaml"
SMALL = Config(
    shorter=112, longest=224, layers=("blocks.4",), region_mean=True, channels=8, hidden=32, max_proposals=200,
    epochs=3, images_per_batch=2, regions_per_image=16, repeat_below=0.0,
)  # fmt: skip


def draw(folder: Path, images: int, seed: int = 3) -> Path:
    """Draw a toy set, a quarter of it test images; return its folder."""
    load_tool("make_toy").make_toy(folder, images, seed)
    return folder


def tiny_trunk(taps: int = 1) -> Trunk:
    """Return a trunk of two convolutions, cells of 8 and 16 pixels, with seeded weights; its first ones are taps."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = nn.Module()
        model.features = nn.Sequential(nn.Conv2d(3, 5, 8, stride=8), nn.Conv2d(5, 7, 2, stride=2))
    half = torch.full((3,), 127.5)
    return Trunk("tiny", model, (Tap("features.0", 8, 3.5, 5), Tap("features.1", 16, 7.5, 7))[:taps], (half, half))


def small_model(config: Config = SMALL, seed: int = 5, trunk: Trunk | None = None) -> SPPNet:
    """Return a detector of toy shapes whose learned layers are random."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SPPNet(config, CLASSES, trunk)


def make_caches(folder: Path, model: SPPNet) -> Caches:
    store = ProposalStore(folder / "proposals", make_proposer("fast"))
    return Caches(store, FeatureStore(folder / "maps", model.extractor))


def toy_samples(spec: str = TOY) -> tuple:  # type: ignore[type-arg]
    return open_dataset(spec, CLASSES).samples


def command(name: str, *arguments: str | Path) -> list[str]:
    """Return the command line of `sppnet NAME` as a process of its own, on one core."""
    return [sys.executable, str(REPOSITORY / "tools" / f"{name}.py"), *map(str, arguments), "--threads", "1"]


def finish(arguments: list[str]) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a process to its end; return it and the processor seconds that it took."""
    before = os.times()
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=500, check=False)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return done, used


def stop(arguments: list[str], signal: int, when: Callable[[], bool]) -> tuple[int, list[str]]:
    """Start a process and send it a signal as soon as a condition holds; return its exit code and lines of stderr."""
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        deadline = time.monotonic() + 300
        while not when() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal)
        _, errors = process.communicate(timeout=100)
    return process.returncode, errors.splitlines()
