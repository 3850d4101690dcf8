"""Check that the Python of the README runs, on a real photo, and says what it claims."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import skimage
from PIL import Image

from tests.sources import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    photo = Path(skimage.__file__).parent / "data" / "chelsea.png"
    Image.open(photo).convert("RGB").save(tmp_path / "cat.jpg", quality=95)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert capsys.readouterr().out.startswith("cat ")
    assert names["scores"].probabilities.shape == (2, 21)
    assert names["scores"].refined.shape == (2, 4)


def test_the_commands_and_files_that_it_names_exist() -> None:
    for name in re.findall(r"\]\(((?!https?:)[^)#]+)\)", README):
        assert (REPOSITORY / name).exists(), name
    for script in re.findall(r"^(?:sh|python) (tools/\S+)", README, flags=re.MULTILINE):
        assert (REPOSITORY / script).is_file(), script
