"""Run the programs that measure classification from end to end on drawn photos."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sources import REPOSITORY
from tests.toy import draw

pytestmark = pytest.mark.slow


def run(tool: str, *arguments: str) -> str:
    """Run a program of tools; return what it printed."""
    command = [sys.executable, str(REPOSITORY / "tools" / f"{tool}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_views_are_compared(tmp_path: Path) -> None:
    toy = draw(tmp_path / "toy", 40)
    options = ["--set", "layer=blocks.4", "--set", "levels=[1]", "--out", str(tmp_path / "views")]
    printed = run("compare_views", "--train", f"voc:{toy}:train", "--test", f"voc:{toy}:test", *options)
    report = json.loads((tmp_path / "views" / "views.json").read_text())
    assert list(report["results"])[:4] == ["no SPP, crop", "SPP, crop", "SPP, warp", "SPP, full image"]
    assert "SPP, full image" in printed
    for row in report["results"].values():
        low, high = row["interval"]
        assert 0.5 < low <= row["map"] <= high <= 1
    chosen = {name: row["held_out_map"] for name, row in report["choices"].items() if name.count(",") == 2}
    assert max(chosen, key=lambda name: chosen[name]) in report["results"]
    assert all(list(side) == ["crop", "ten-crop", "ten", "many"] for side in report["views"].values())


def test_views_are_timed(tmp_path: Path) -> None:
    photos = sorted(map(str, (REPOSITORY / "data" / "toy" / "JPEGImages").glob("*.jpg")))[:2]
    printed = run("time_views", *photos, "--sides", "64,224", "--out", str(tmp_path))
    rows = json.loads((tmp_path / "times.json").read_text())
    assert {row["side"] for row in rows} == {64, 224}
    for row in rows:
        assert 0 < row["milliseconds"]["full"] < row["milliseconds"]["many"]
        assert f"ten-crop {row['milliseconds']['ten-crop']:.1f}" in printed


def test_sizes_are_compared_and_a_second_run_only_measures(tmp_path: Path) -> None:
    toy = draw(tmp_path / "toy", 40)
    options = ["--data", f"voc:{toy}:train", "--out", str(tmp_path / "sizes"), "--epochs", "2", "--seeds", "1"]
    run("compare_sizes", *options)
    report = json.loads((tmp_path / "sizes" / "sizes.json").read_text())
    assert list(report["accuracy"]) == ["64 pixels", "48 and 80 in turn", "32 to 96 at random"]
    assert all(len(run) == len(report["tested"]) == 9 for runs in report["accuracy"].values() for run in runs)
    assert (tmp_path / "sizes" / "sizes.png").read_bytes()[:4] == b"\x89PNG"
    models = {path: path.stat().st_mtime_ns for path in (tmp_path / "sizes").glob("*/model.safetensors")}
    assert len(models) == 3
    run("compare_sizes", *options)
    assert models == {path: path.stat().st_mtime_ns for path in models}
    assert json.loads((tmp_path / "sizes" / "sizes.json").read_text()) == report
