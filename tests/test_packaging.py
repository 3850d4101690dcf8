"""Build the wheel from a copy of the sources and look at what is in it."""

from __future__ import annotations

import configparser
import email.message
import email.parser
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sources import PACKAGES, REPOSITORY

pytestmark = pytest.mark.slow

FILES = ("setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md")
FOLDERS = (*PACKAGES, "tests", "tools", "configs", "docs")
NEVER_COPIED = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist")
# What the design fixes, and what a user must get without asking.
DEPENDENCIES = {"torch", "torchvision", "opencv-python", "selectivesearch", "pycocotools"}
MAX_BYTES = 30_000_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """Build the wheel without the network, from a copy: a build leaves folders that would leak into the next one."""
    copy, built = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("built")
    for name in FILES:
        shutil.copy(REPOSITORY / name, copy / name)
    for name in FOLDERS:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, copy / name, ignore=NEVER_COPIED)
    for stray in ("detector/models/photo.jpg", "detector/models/old.ckpt", "proposals/photo.png", "data/stray.py"):
        (copy / stray).parent.mkdir(parents=True, exist_ok=True)
        (copy / stray).touch()
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--verbose"]
    command = [sys.executable, "-m", "pip", "wheel", str(copy), "--wheel-dir", str(built), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    log = done.stdout + done.stderr
    assert done.returncode == 0, log
    assert not re.search(r"\w+Warning\b|deprecated", log), log
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


def contents(wheel: zipfile.ZipFile) -> set[str]:
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


def dist_info(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = (path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def metadata(wheel: zipfile.ZipFile) -> email.message.Message:
    return email.parser.Parser().parsestr(dist_info(wheel, "METADATA"))


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    modules = {path.relative_to(REPOSITORY) for name in PACKAGES for path in (REPOSITORY / name).rglob("*.py")}
    models = {path.relative_to(REPOSITORY) for path in (REPOSITORY / "detector" / "models").glob("*.safetensors")}
    notes = {path.relative_to(REPOSITORY) for path in (REPOSITORY / "detector" / "models").glob("*.json")}
    typed = {Path(name, "py.typed") for name in PACKAGES}
    assert contents(wheel) == {path.as_posix() for path in modules | models | notes | typed}


def test_it_is_small(wheel: zipfile.ZipFile) -> None:
    assert Path(str(wheel.filename)).stat().st_size < MAX_BYTES


def test_it_installs_the_command(wheel: zipfile.ZipFile) -> None:
    entries = configparser.ConfigParser()
    entries.read_string(dist_info(wheel, "entry_points.txt"))
    assert dict(entries["console_scripts"]) == {"sppnet": "detector.cli:main"}


def test_it_asks_for_what_a_user_needs(wheel: zipfile.ZipFile) -> None:
    requirements = metadata(wheel).get_all("Requires-Dist") or []
    ordinary = [requirement for requirement in requirements if "extra ==" not in requirement]
    names = {re.split(r"[^\w.-]", requirement)[0].lower() for requirement in ordinary}
    assert names >= DEPENDENCIES
    assert all(re.search(r"[<>=~]=?", requirement) for requirement in ordinary), "a dependency without a range"
    assert {name for name in names if name.startswith("opencv")} == {"opencv-python"}, "two OpenCVs break each other"


def test_it_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    fields = metadata(wheel)
    assert (fields["Name"], fields["License-Expression"]) == ("sppnet", "BSD-3-Clause")
    assert fields["Requires-Python"] == ">=3.10"
    assert "sppnet contributors" in dist_info(wheel, "licenses/LICENSE")


def test_the_changelog_knows_the_version(wheel: zipfile.ZipFile) -> None:
    assert str(metadata(wheel)["Version"]) in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
