"""Check that a compiled trunk computes what the trunk does, at any size."""

from __future__ import annotations

import shutil

import pytest
import torch

from detector.engines import choose_engine, trunk_maps
from tests.toy import small_model, tiny_trunk


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_compiled_trunk_computes_the_same_at_every_size() -> None:
    """Compile once (up to a minute); float32 may round otherwise, bfloat16 by 2**-8 of the largest value a layer."""
    trunk = tiny_trunk()
    engine = choose_engine("compile")
    maps = trunk_maps(trunk, engine)
    generator = torch.Generator().manual_seed(5)
    within = 0.05 if engine.dtype == torch.bfloat16 else 1e-4
    for size in ((64, 96), (96, 64), (32, 160)):
        x = torch.randn(1, 3, *size, generator=generator)
        with torch.inference_mode():
            found, expected = maps(x), trunk.maps(x)
        assert len(found) == len(expected) > 0
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == torch.float32
            assert one.shape == other.shape
            assert float(other.std()) > 0
            assert float((one - other).abs().max()) <= within * float(other.abs().max())


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="there is no C++ compiler")
def test_the_detector_takes_the_engine_by_name() -> None:
    model = small_model(trunk=tiny_trunk())
    model.use_engine("compile")
    assert model.engine.name == "compile"
