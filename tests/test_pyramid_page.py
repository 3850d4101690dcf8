"""Check docs/pyramid.md: its Python runs, its table and pictures are those that the tool makes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.sources import REPOSITORY

PAGE = (REPOSITORY / "docs" / "pyramid.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
PICTURES = ("pyramid-bins.png", "pyramid-windows.png", "pyramid-formula.png")
MAX_BYTES = 60_000


def run(blocks: list[str], names: dict[str, Any]) -> None:
    for block in blocks:
        exec(compile(block, "pyramid.md", "exec"), names)


@pytest.mark.filterwarnings(r"ignore:`torch\.jit\.\w+` is deprecated:FutureWarning")
def test_the_layer_and_torchscript_run_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(BLOCKS) == 3
    names: dict[str, Any] = {}
    run(BLOCKS[:2], names)
    assert capsys.readouterr().out.splitlines() == ["torch.Size([2, 10])"] * 3
    values = torch.randn(1, 3, 19, 30)
    assert torch.equal(torch.jit.load("network.pt")(values), names["network"](values))


def test_the_export_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript", reason="needs onnxscript, with which PyTorch exports to ONNX")
    runtime = pytest.importorskip("onnxruntime", reason="needs ONNX Runtime to run what was exported")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    run([BLOCKS[0], BLOCKS[2]], names)
    session = runtime.InferenceSession("network.onnx", providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 1, 1), (3, 3, 77, 50)):
        values = torch.randn(shape)
        (found,) = session.run(None, {session.get_inputs()[0].name: values.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), names["network"](values).detach(), rtol=1e-5, atol=1e-5)


def test_the_tool_draws_the_pictures_and_prints_the_table(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "tools" / "draw_bins.py"), "--out", str(tmp_path / "pictures")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in PAGE
    assert "| 6 | 20 | 29 | 15 | 1-5, 8-11, 15-17, 22-23, 29 |" in done.stdout
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == sorted(PICTURES)
    for name in PICTURES:
        with Image.open(tmp_path / "pictures" / name) as picture:
            assert picture.format == "PNG"
            assert 800 <= picture.width <= 1000
            assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 10, "nothing is drawn"


def test_the_page_shows_each_picture_and_they_are_small() -> None:
    assert sorted(re.findall(r"\]\(pictures/([^)]+)\)", PAGE)) == sorted(PICTURES)
    for name in PICTURES:
        assert (REPOSITORY / "docs" / "pictures" / name).stat().st_size < MAX_BYTES
