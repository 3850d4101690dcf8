"""Check `sppnet classify` on a few small images and a classifier of colours."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from detector.classifier_files import load_classifier
from detector.cli import main
from detector.images import read_image
from detector.views import VIEWS
from tests.sources import REPOSITORY
from tests.toy import draw, stop

KINDS = {"blue": (40, 40, 200), "green": (40, 190, 40), "red": (200, 40, 40)}
STAGES = ["resize", "conv", "pool", "fc", "total"]


def draw_kinds(folder: Path, count: int, seed: int = 3) -> Path:
    """Draw `count` noisy images of every colour, FOLDER/COLOUR/NUMBER.png, none of them square; return the folder."""
    rng = np.random.default_rng(seed)
    for name, colour in KINDS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = colour + rng.integers(-30, 31, (60 + number, 90 - 2 * number, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a classifier of colours, one class each."""
    folder = tmp_path_factory.mktemp("model")
    return trained(f"folder:{draw_kinds(folder / 'kinds', 8)}", folder / "run")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a VOC tree of 24 training and 8 test images."""
    return draw(tmp_path_factory.mktemp("toy"), 32)


@pytest.fixture(scope="module")
def several(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a classifier of images that show several shapes."""
    return trained(f"voc:{toy}:train", tmp_path_factory.mktemp("several") / "run")


def trained(spec: str, out: Path) -> Path:
    """Train a classifier behind the published trunk; return its file."""
    result = run("train", "--task", "classify", spec, "--out", out, "--set", "side=64", "--set", "levels=[2,1]")
    assert result.exit_code == 0, result.stderr
    return out / "model.safetensors"


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder photos of the current folder with blue.png, green.png and red.jpg."""
    monkeypatch.chdir(tmp_path)
    drawn, folder = draw_kinds(tmp_path / "drawn", 1, seed=7), tmp_path / "photos"
    folder.mkdir()
    for name in ("blue", "green"):
        (drawn / name / "0.png").rename(folder / f"{name}.png")
    Image.open(drawn / "red" / "0.png").resize((130, 70)).save(folder / "red.jpg", quality=95)
    return folder


def run(name: str, *arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [name, *map(str, arguments), "--threads", "1"])


def read(path: str | Path) -> Any:
    return json.loads(Path(path).read_text())


def test_a_line_for_each_image_names_what_it_shows(photos: Path, model: Path) -> None:
    result = run("classify", "photos", "--model", model)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line.split(": ")[0] for line in lines] == ["photos/blue.png", "photos/green.png", "photos/red.jpg"]
    for line, kind in zip(lines, KINDS, strict=True):
        parts = [part.rsplit(" ", 1) for part in line.split(": ")[1].split(", ")]
        assert parts[0][0] == kind
        assert {name for name, _ in parts} == set(KINDS)
        scores = [float(score) for _, score in parts]
        assert scores == sorted(scores, reverse=True)
    assert not Path("classifications.json").exists()


def test_the_file_and_the_json_say_the_same_as_the_api(photos: Path, model: Path) -> None:
    result = run("classify", "photos", "--model", model, "--json", "--out", "named/new")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines()[-1] == "written: named/new/classifications.json"
    entries = read("named/new/classifications.json")
    assert json.loads(result.stdout) == entries
    net = load_classifier(model)
    for entry, name in zip(entries, ("blue.png", "green.png", "red.jpg"), strict=True):
        assert list(entry) == ["image", "height", "width", "classes", "seconds"]
        image = read_image(photos / name)
        assert (entry["image"], entry["height"], entry["width"]) == (f"photos/{name}", *image.shape[1:])
        assert [sorted(row) for row in entry["classes"]] == [["label", "score"]] * 3
        scores = net.predict(image).scores.tolist()
        assert [row["score"] for row in entry["classes"]] == pytest.approx(sorted(scores, reverse=True), abs=6e-6)
        assert {row["label"]: row["score"] for row in entry["classes"]} == pytest.approx(
            dict(zip(KINDS, scores, strict=True)), abs=6e-6
        )
        assert sum(row["score"] for row in entry["classes"]) == pytest.approx(1, abs=2e-5)
        assert list(entry["seconds"]) == STAGES
        assert 0 < sum(entry["seconds"][stage] for stage in STAGES[:-1]) <= entry["seconds"]["total"] + 1e-4


def test_scores_of_several_classes_stand_for_themselves(toy: Path, several: Path, tmp_path: Path) -> None:
    result = run("classify", toy / "JPEGImages", "--model", several, "--json", "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    sums = [sum(row["score"] for row in entry["classes"]) for entry in read(tmp_path / "classifications.json")]
    assert len(sums) == 32
    assert max(sums) > 1.3  # an image with two shapes or more that it learned from
    assert min(sums) < 0.9 * max(sums)


def test_fewer_classes_and_another_side_may_be_asked_for(photos: Path, model: Path) -> None:
    result = run("classify", "photos/red.jpg", "--model", model, "--top", "1", "--side", "96", "--json")
    (entry,) = json.loads(result.stdout)
    ((label, score),) = load_classifier(model).predict(read_image(photos / "red.jpg"), side=96).top(1)
    assert entry["classes"] == [{"label": label, "score": pytest.approx(score, abs=6e-6)}]
    other = load_classifier(model).predict(read_image(photos / "red.jpg")).top(1)[0][1]
    assert abs(other - score) > 1e-4
    assert label == "red"


@pytest.mark.parametrize("views", VIEWS)
def test_all_views_name_images_of_any_size(photos: Path, model: Path, views: str) -> None:
    for width, height in ((1, 1), (3, 500), (500, 3), (64, 65)):
        Image.new("RGB", (width, height), KINDS["red"]).save(photos / f"{width}x{height}.png")
    result = run("classify", "photos", "--model", model, "--views", views, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    entries = json.loads(result.stdout)
    assert [(entry["width"], entry["height"]) for entry in entries[:4]] == [(1, 1), (3, 500), (500, 3), (64, 65)]
    net = load_classifier(model)
    for entry in entries:
        expected = net.predict(read_image(entry["image"]), views).to_dicts()
        assert entry["classes"] == [{**row, "score": pytest.approx(row["score"], abs=2e-5)} for row in expected]
    assert [entry["classes"][0]["label"] for entry in entries[4:]] == list(KINDS)


def test_bad_files_are_named_and_the_others_processed(photos: Path, model: Path) -> None:
    (photos / "cut.png").write_bytes((photos / "blue.png").read_bytes()[:900])
    (photos / "text.jpg").write_text("no photo")
    result = run("classify", "missing.jpg", "photos", "--model", model, "--json", "--out", "out")
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("sppnet: ")]
    assert [line.split(": ")[1] for line in lines] == ["missing.jpg", "photos/cut.png", "photos/text.jpg"]
    entries = json.loads(result.stdout)
    assert [entry["image"] for entry in entries] == ["photos/blue.png", "photos/green.png", "photos/red.jpg"]
    assert read("out/classifications.json") == entries


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nothing*.jpg"], 2, "expected at least one image, got none from nothing*.jpg"),
        ([], 2, "Missing argument 'PATH...'"),
        (["photos", "--views", "nine"], 1, "expected views among full, crop, warp, ten-crop, ten, many, got 'nine'"),
        (["photos", "--top", "0"], 2, "Invalid value for '--top'"),
        (["photos", "--side", "0"], 2, "Invalid value for '--side'"),
        (["photos", "--device", "warp"], 2, "--device: expected one of cpu"),
        (["photos", "--engine", "steam"], 1, "expected an engine among"),
        (["photos", "--out", "photos/red.jpg/out"], 2, "--out: expected a folder that can be written"),
        (["photos", "--model", "voc-lite0"], 1, "expected a classifier of format sppnet-classifier-1, got sppnet-1"),
        (["photos", "--model", "none.safetensors"], 1, "none.safetensors: expected a safetensors file"),
        (["photos", "--model", "photos/red.jpg"], 1, "photos/red.jpg: expected"),
        (["photos", "--model", "unknown"], 1, "expected a classifier among"),
    ],
)
def test_mistakes_are_told_in_one_line(
    photos: Path, model: Path, arguments: list[str], code: int, message: str
) -> None:
    result = run("classify", "--model", model, *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith("sppnet: error: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert {path.name for path in Path().iterdir()} == {"drawn", "photos"}


@pytest.mark.slow
def test_ctrl_c_leaves_no_half_written_file(photos: Path, model: Path) -> None:
    for number in range(300):
        Image.new("RGB", (97, 65), (number % 256, 90, 40)).save(photos / f"{number}.png")
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from detector.cli import main; main()"
    options = ["classify", "photos", "--model", str(model), "--side", "224", "--views", "ten-crop", "--out", "out"]
    script = Path("script.py")
    script.write_text(code.replace("; ", "\n"))
    lines = Path("lines.txt")
    shell = f'exec "{sys.executable}" script.py {" ".join(options)} > lines.txt'
    stopped, errors = stop(["bash", "-c", shell], signal.SIGINT, lambda: lines.exists() and lines.stat().st_size > 0)
    assert (stopped, errors[-1]) == (130, "interrupted")
    assert 0 < len(lines.read_text().splitlines()) < 303
    assert not Path("out").exists() or not list(Path("out").iterdir())


def test_the_help_teaches() -> None:
    text = " ".join(CliRunner().invoke(main, ["classify", "--help"]).stdout.split())
    for part in ("without cropping or warping", "quoted glob", "classifications.json", "ten-crop", "sum to 1"):
        assert part in text
    assert "classify" in CliRunner().invoke(main, ["--help"]).stdout
