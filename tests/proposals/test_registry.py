"""Look proposers up by name, and import the package without paying for what is not used."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import proposals
from proposals.fast import SelectiveSearch
from proposals.opencv import has_ximgproc
from proposals.registry import NAMES as KNOWN
from proposals.registry import PROPOSERS, make_proposer
from proposals.store import settings_key
from proposals.structures import Proposer
from tests.sources import REPOSITORY

NAMES = [
    "single",
    "fast",
    "quality",
    "edgeboxes",
    "selectivesearch",
    "opencv-single",
    "opencv-fast",
    "opencv-quality",
    "windows",
]


def test_the_names_are_known() -> None:
    assert list(PROPOSERS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_proposer_has_the_name_it_is_found_by(name: str) -> None:
    if name.startswith("opencv") and not has_ximgproc():
        pytest.skip("this OpenCV has no ximgproc")
    proposer = make_proposer(name)
    assert isinstance(proposer, Proposer)
    assert proposer.name == proposer.settings["proposer"] == name


def test_no_two_share_a_cache() -> None:
    usable = [name for name in NAMES if has_ximgproc() or not name.startswith("opencv")]
    assert len({settings_key(make_proposer(name).settings) for name in usable}) == len(usable)


@pytest.mark.parametrize("name", ["Fast", "", "opencv", "json", "json:", "fast:x", "npz:x"])
def test_an_unknown_name_is_refused_naming_the_known(name: str) -> None:
    with pytest.raises(ValueError, match=f"^expected a proposer named {', '.join(KNOWN)}, got {name!r}$"):
        make_proposer(name)


def test_public_names_are_what_their_modules_define() -> None:
    assert len(proposals.__all__) <= 15
    assert proposals.__all__ == sorted(proposals.__all__)
    assert set(proposals.__all__) <= set(dir(proposals))
    tree = ast.parse((REPOSITORY / "proposals" / "__init__.py").read_text(encoding="utf-8"))
    typed = {a.name: n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level for a in n.names}
    assert sorted(typed) == proposals.__all__, "what type checkers see is what there is"
    for name, module in typed.items():
        assert getattr(proposals, name).__module__ == f"proposals.{module}"
    assert proposals.SelectiveSearch is SelectiveSearch
    with pytest.raises(AttributeError, match="module 'proposals' has no attribute 'nothing'"):
        proposals.nothing  # noqa: B018


def test_importing_the_package_imports_nothing_heavy(tmp_path: Path) -> None:
    program = "import sys, proposals; print(sorted(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    loaded = set(re.findall(r"'([\w.]+)'", done.stdout))
    assert "proposals" in loaded
    assert loaded & {"torch", "numba", "numpy", "cv2", "skimage", "selectivesearch", "detector"} == set()
    assert {name for name in loaded if name.startswith("proposals.")} == set()
