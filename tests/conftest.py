"""Make every test start from the same seeds and give it the shared photos where they are present."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parent.parent
SEED = 1406_4729

settings.register_profile("sppnet", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("sppnet")
torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Seed the global generators, for code of others that draws from them; ours takes its generator as an argument."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


@pytest.fixture
def generator() -> torch.Generator:
    """Return a generator with a fixed seed."""
    return torch.Generator().manual_seed(SEED)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of the shared photos (SPPNET_DATA, or shared/data beside the repository), or skip the test."""
    folder = Path(os.environ.get("SPPNET_DATA") or REPOSITORY.parent / "shared" / "data")
    if not (folder / "VOC2007").is_dir():
        pytest.skip(f"needs the shared photos, and there is no folder VOC2007 in {folder}: set SPPNET_DATA")
    return folder


def pytest_configure() -> None:
    """Hear Ctrl-C also when a shell runs the tests in the background.

    It is then ignored, and so it would be in the processes that tests start and interrupt.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
