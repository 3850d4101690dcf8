"""Tell compiled kernels from those that are not, in a module that a test writes."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from proposals.kernels import compiled, usable_cores

SOURCE = """
from numba import njit

@njit(cache=True)
def double(x):
    return 2 * x

@njit(cache=True)
def triple(x):
    return 3 * x
"""


def test_kernels_are_compiled_once_each_has_run_since_its_source_changed(tmp_path: Path) -> None:
    path = tmp_path / "written_kernels.py"
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("written_kernels", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kernels = (module.double, module.triple)
    assert not compiled(kernels)
    assert module.double(3) == 6
    assert compiled(kernels[:1])
    assert not compiled(kernels)
    assert module.triple(3) == 9
    assert compiled(kernels)
    later = path.stat().st_mtime + 100
    os.utime(path, (later, later))
    assert not compiled(kernels)


def test_there_is_a_core_to_use() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
