"""Check `sppnet detect` from files to files, with a tiny model that has not learned anything."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from detector.checkpoints import load_detector, save_detector
from detector.cli import main
from detector.config import Config
from detector.images import read_image
from detector.sppnet import SPPNet
from proposals.opencv import has_ximgproc
from proposals.registry import make_proposer
from tests.sources import REPOSITORY
from tests.toy import SETTINGS, TOY

NAMES = ("circle", "square", "triangle")
STAGES = ["proposals", "conv", "pool", "fc", "select", "total"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a small detector with random learned layers."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        net = SPPNet(Config(shorter=128, longest=256, channels=8, hidden=16, readable_score=0.0), NAMES)
        path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
        save_detector(net, path)
    return path


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, with photos/one.jpg (120 x 90), photos/two.png (64 x 100) and three bad files."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    picture(120, 90, 1).save(folder / "one.jpg", quality=95)
    picture(64, 100, 2).save(folder / "two.png")
    return folder


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Return a picture of flat rectangles."""
    pixels = np.full((height, width, 3), 200, dtype=np.uint8)
    rng = np.random.default_rng(seed)
    for _ in range(4):
        x, y = rng.integers(0, width - 20), rng.integers(0, height - 20)
        pixels[y : y + 30, x : x + 40] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def names(folder: str | Path) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def entries(folder: str | Path = "out") -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads((Path(folder) / "detections.json").read_text())
    return content


def check_entry(entry: dict[str, Any]) -> None:
    """Check the schema of one entry of detections.json, and that its boxes are inside its image."""
    assert list(entry) == ["image", "height", "width", "detections", "seconds"]
    assert (entry["height"], entry["width"]) == tuple(read_image(entry["image"]).shape[1:])
    assert list(entry["seconds"]) == STAGES
    assert all(isinstance(value, float) and value >= 0 for value in entry["seconds"].values())
    assert sum(entry["seconds"][stage] for stage in STAGES[:-1]) <= entry["seconds"]["total"] + 1e-4
    for row in entry["detections"]:
        assert set(row) >= {"label", "score", "box"}
        assert row["label"] in NAMES
        assert 0 <= row["score"] <= 1
        x1, y1, x2, y2 = row["box"]
        assert 0 <= x1 < x2 <= entry["width"]
        assert 0 <= y1 < y2 <= entry["height"]


def test_a_folder_becomes_pictures_and_numbers(photos: Path, model: Path) -> None:
    result = run("detect", "photos", "--out", "out", "--model", model)
    assert (result.exit_code, result.stderr) == (0, "")
    found = entries()
    assert [entry["image"] for entry in found] == ["photos/one.jpg", "photos/two.png"]
    for entry in found:
        check_entry(entry)
        assert entry["detections"]
        scores = [row["score"] for row in entry["detections"]]
        assert scores == sorted(scores, reverse=True)
        assert entry["seconds"]["conv"] > 0
    total = sum(len(entry["detections"]) for entry in found)
    assert result.stdout == f"{total} detections in 2 images: out/detections.json, pictures in out\n"
    assert names("out") == ["detections.json", "one.jpg", "two.png"]
    for name in ("one.jpg", "two.png"):
        before, after = read_image(photos / name).int(), read_image(Path("out") / name).int()
        assert before.shape == after.shape
        assert ((before - after).abs().amax(0) > 40).float().mean() > 0.05


def test_the_command_finds_what_the_api_finds(photos: Path, model: Path) -> None:
    options = ["--score", "0.3", "--proposals", "fast", "--max-proposals", "50", "--device", "cpu", "--json-only"]
    assert run("detect", "photos/one.jpg", "--out", "out", "--model", model, *options).exit_code == 0
    net, image = load_detector(str(model)), read_image("photos/one.jpg")
    expected = net.predict(image, make_proposer("fast")(image).top(50)).above(0.3).to_dicts()
    assert entries()[0]["detections"] == expected
    assert names("out") == ["detections.json"]


def test_the_score_and_the_number_of_proposals_count(photos: Path, model: Path) -> None:
    found = {}
    for options in (["--score", "0"], ["--score", "0.35"], ["--score", "1"], ["--max-proposals", "1", "--score", "0"]):
        assert run("detect", "photos/one.jpg", "--out", "o", "--model", model, "--json-only", *options).exit_code == 0
        found[" ".join(options)] = entries("o")[0]["detections"]
    everything = found["--score 0"]
    assert found["--score 0.35"] == [row for row in everything if row["score"] >= 0.35]
    assert found["--score 1"] == []
    assert 0 < len(found["--max-proposals 1 --score 0"]) <= len(NAMES) < len(everything)


def test_given_boxes_come_back_in_order_with_all_probabilities(photos: Path, model: Path) -> None:
    boxes = [[30, 20, 90, 80], [0, 0, 10.5, 10], [30, 20, 90, 80], [100, 60, 150, 95]]
    Path("boxes.json").write_text(json.dumps({"one.jpg": boxes, "two": []}))
    result = run("detect", "photos", "--out", "out", "--model", model, "--boxes", "boxes.json", "--score", "0.99")
    assert (result.exit_code, result.stderr) == (0, "")
    one, two = entries()
    assert two["detections"] == []
    rows = one["detections"]
    assert [row["box"] for row in rows] == boxes
    assert rows[0] == rows[2]
    net = load_detector(str(model))
    scores = net.predict_boxes(read_image("photos/one.jpg"), torch.tensor(boxes, dtype=torch.float32))
    for row, expected in zip(rows, scores.probabilities.tolist(), strict=True):
        assert list(row["probabilities"]) == [*NAMES, "background"]
        assert list(row["probabilities"].values()) == pytest.approx(expected, abs=1e-5)
        best = max(NAMES, key=row["probabilities"].__getitem__)
        assert (row["label"], row["score"]) == (best, row["probabilities"][best])
    assert one["seconds"]["proposals"] == 0
    assert names("out") == ["detections.json", "one.jpg", "two.png"]


def test_boxes_that_fit_no_image_are_named(photos: Path, model: Path) -> None:
    Path("boxes.json").write_text(json.dumps([{"image_id": "one", "bbox": [500, 500, 10, 10]}]))
    result = run("detect", "photos", "--out", "out", "--model", model, "--boxes", "boxes.json")
    assert result.exit_code == 1
    first, second = result.stderr.splitlines()
    assert first.startswith("sppnet: photos/one.jpg: expected boxes")
    assert second == "sppnet: photos/two.png: expected an entry for it in boxes.json, got none"
    assert entries() == []


def test_a_model_that_is_refused_leaves_no_folder(photos: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["detect", str(photos), "--model", "none", "--out", str(tmp_path / "a" / "b")])
    assert result.exit_code == 1
    assert list(tmp_path.iterdir()) == [photos]


def test_bad_files_are_named_and_the_others_processed(photos: Path, model: Path) -> None:
    (photos / "empty.jpg").touch()
    (photos / "text.jpg").write_text("no photo")
    (photos / "cut.png").write_bytes((photos / "two.png").read_bytes()[:60])
    result = run("detect", "missing.jpg", "photos", "--out", "out", "--model", model)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    named = ["missing.jpg", "photos/cut.png", "photos/empty.jpg", "photos/text.jpg"]
    assert [line.split(": ")[1] for line in lines] == named
    assert all(line.startswith("sppnet: ") for line in lines)
    assert [entry["image"] for entry in entries()] == ["photos/one.jpg", "photos/two.png"]


def test_inputs_are_never_overwritten_and_stems_may_repeat(photos: Path, model: Path) -> None:
    Path("more").mkdir()
    picture(50, 40, 3).save("more/one.jpg")
    before = {path: path.read_bytes() for path in (photos / "one.jpg", photos / "two.png", Path("more/one.jpg"))}
    assert run("detect", "photos", "more/one.jpg", "--out", "photos", "--model", model).exit_code == 0
    assert all(path.read_bytes() == content for path, content in before.items())
    expected = ["detections.json", "one-2.jpg", "one-3.jpg", "one.jpg", "two-2.png", "two.png"]
    assert names("photos") == expected
    assert read_image("photos/one-3.jpg").shape == (3, 40, 50)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nothing*.jpg", "--out", "out"], 2, "expected at least one image, got none from nothing*.jpg"),
        (["photos"], 2, "Missing option '--out'"),
        (["--out", "out"], 2, "Missing argument 'PATH...'"),
        (["photos", "--out", "out", "--score", "2"], 2, "Invalid value for '--score'"),
        (["photos", "--out", "out", "--device", "warp"], 2, "--device: expected one of cpu"),
        (["photos", "--out", "out", "--boxes", "no.json"], 2, "'no.json' does not exist"),
        (["photos", "--out", "out", "--model", "no.safetensors"], 1, "no.safetensors: expected"),
        (["photos", "--out", "out", "--proposals", "none"], 1, "expected a proposer named"),
        (["photos", "--out", "photos/one.jpg/out"], 2, "--out: expected a folder that can be written, got photos/one"),
        (["photos", "--out", "out", "--boxes", "photos/one.jpg"], 1, "photos/one.jpg: expected JSON"),
        (["photos", "--out", ".", "--boxes", "detections.json"], 2, "expected --boxes to be another file"),
    ],
)
def test_mistakes_are_told_in_one_line(
    photos: Path, model: Path, arguments: list[str], code: int, message: str
) -> None:
    Path("detections.json").write_text("{}")
    result = run("detect", "--model", model, *arguments)
    assert result.exit_code == code
    assert result.stderr.startswith("sppnet: error: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
    assert Path("detections.json").read_text() == "{}"


@pytest.mark.skipif(has_ximgproc(), reason="this OpenCV has ximgproc")
@pytest.mark.parametrize("name", ["detect", "train", "evaluate"])
def test_proposals_of_an_opencv_that_is_not_installed_are_told_in_one_line(
    photos: Path, model: Path, name: str
) -> None:
    arguments = {
        "detect": ["photos", "--out", "out", "--model", model, "--proposals", "opencv-fast"],
        "train": [TOY, "--out", "out", "--config", SETTINGS, "--set", "proposals=opencv-fast"],
        "evaluate": ["--data", TOY, "--out", "out", "--model", model, "--proposals", "opencv-fast"],
    }
    result = run(name, *arguments[name])
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("sppnet: error: ")]
    assert line == result.stderr.splitlines()[-1]
    assert "expected a contrib build of OpenCV" in line
    assert "Traceback" not in result.stderr


def test_verbose_shows_the_traceback(photos: Path) -> None:
    result = run("-v", "detect", "photos", "--out", "out", "--model", "no.safetensors")
    assert isinstance(result.exception, FileNotFoundError)
    assert "no.safetensors: expected" in str(result.exception)


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, str(REPOSITORY / "tools" / "detect.py"), *map(str, arguments)]


def test_the_program_runs_as_a_process_of_its_own(photos: Path, model: Path) -> None:
    """Two threads, a quoted glob, a bad file: exit code 1 and one line on stderr."""
    (photos / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    done = subprocess.run(
        command("photos/*.*", "--out", "out", "--model", model, "--threads", "2"),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("compiling kernels")]
    assert line.startswith("sppnet: photos/bad.jpg: expected an image")
    assert len(entries()) == 2


def test_ctrl_c_leaves_nothing_half_written(photos: Path, model: Path) -> None:
    for number in range(300):
        picture(120, 90, number).save(photos / f"{number}.png")
    arguments = command("photos", "--out", "out", "--model", model)
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not list(Path("out").glob("*.png")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted"
    written = names("out")
    assert 0 < len(written) < 302
    assert all(read_image(Path("out") / name).shape == (3, 90, 120) for name in written)
