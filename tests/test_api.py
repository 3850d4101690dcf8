"""Check the names that `import detector` offers: few, lazy, and those of the modules that define them."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys

import pytest
import torch

import detector
from tests.sources import REPOSITORY, read

HEAVY = ("torch", "numpy", "cv2", "numba", "torchvision", "matplotlib", "click", "yaml", "PIL")


def type_checking_imports() -> dict[str, str]:
    """Return what a type checker sees: public name -> module that it comes from."""
    tree = read(REPOSITORY / "detector" / "__init__.py")
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    froms = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: f"detector.{node.module}" for node in froms for alias in node.names}


@pytest.mark.parametrize("name", detector.__all__)
def test_a_name_is_what_its_module_defines(name: str) -> None:
    home = importlib.import_module(type_checking_imports()[name])
    value = getattr(detector, name)
    assert value is getattr(home, name)
    assert value.__module__.startswith(home.__name__)
    assert value.__doc__


def test_the_names_are_few_and_sorted_and_typed() -> None:
    assert list(detector.__all__) == sorted(set(detector.__all__))
    assert len(detector.__all__) <= 15
    assert set(type_checking_imports()) == set(detector.__all__) <= set(dir(detector))


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="module 'detector' has no attribute 'load_detectr'"):
        detector.load_detectr  # noqa: B018
    assert not hasattr(detector, "predict")


def test_importing_it_imports_nothing_heavy() -> None:
    code = f"import sys, detector; print([n for n in {HEAVY!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_names_work_together() -> None:
    boxes, none = torch.tensor([[10.0, 5.0, 40.0, 25.0]]), torch.zeros(1, dtype=torch.bool)
    labels, size = torch.tensor([0]), (30, 50)
    truth = detector.GroundTruth(boxes, labels, none, size)
    found = detector.Detections(boxes, torch.tensor([0.75]), labels, size, ("cat",))
    assert detector.evaluate([found], [truth], ("cat",), ["voc10"])["voc10"].map == 1.0
