"""Check `sppnet train` from drawn photos to a finished model, however often it is stopped, and what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from detector.checkpoints import load_detector, read_tensors
from detector.cli import main
from detector.images import read_image
from tests.sources import REPOSITORY
from tests.toy import CLASSES, SETTINGS, command, draw, finish, stop


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a toy set of 60 training and 20 test images."""
    return draw(tmp_path_factory.mktemp("toy"), 80)


@pytest.fixture(scope="module")
def trained(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that nothing stopped, and what it said, in run.txt and errors.txt."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    done, seconds = finish(command("train", f"voc:{toy}:train", "--out", run, "--config", SETTINGS))
    assert done.returncode == 0, done.stderr
    (run / "stdout.txt").write_text(done.stdout)
    (run / "stderr.txt").write_text(done.stderr)
    (run / "seconds.txt").write_text(str(seconds))
    return run


@pytest.mark.slow
def test_a_drawn_set_is_learned_and_measured_in_a_minute(toy: Path, trained: Path) -> None:
    test = [*("--data", f"voc:{toy}:test"), *("--metric", "voc07,voc10"), *("--out", trained / "test")]
    done, seconds = finish(command("evaluate", "--model", trained / "model.safetensors", *test))
    assert done.returncode == 0, done.stderr
    metrics = json.loads((trained / "test" / "metrics.json").read_text())
    assert metrics["voc07"]["map"] > 0.9
    assert metrics["voc10"]["map"] > 0.9
    if "compiling kernels" not in (trained / "stderr.txt").read_text():
        assert float((trained / "seconds.txt").read_text()) + seconds < 60


@pytest.mark.slow
def test_a_run_leaves_its_model_its_metrics_and_a_picture(toy: Path, trained: Path) -> None:
    path = trained / "model.safetensors"
    assert (trained / "stdout.txt").read_text() == f"{path}\n"
    errors = (trained / "stderr.txt").read_text()
    assert "60 images, " in errors
    assert "3 classes: circle, square, triangle" in errors
    assert f"next: sppnet evaluate --model {path} --data voc:{toy}:test" in errors
    assert "Warning" not in errors
    left = {entry.name for entry in trained.iterdir() if entry.suffix != ".txt"} - {"test"}
    assert left == {"cache", "loss.png", "metrics.jsonl", "model.safetensors", "run.json"}
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    assert rows[-1]["positives_right"] > rows[0]["positives_right"]
    assert read_image(trained / "loss.png").shape[2] > 500
    net = load_detector(path)
    assert net.class_names == CLASSES
    record = json.loads((trained / "run.json").read_text())
    assert (record["data"], record["classes"]) == ([f"voc:{toy}:train"], list(CLASSES))
    assert record["settings"] == net.config.to_dict()
    metadata = read_tensors(path)[1]
    assert metadata["trunk"] == "efficientnet_lite0"
    assert metadata["version"]


@pytest.mark.slow
def test_however_a_run_is_stopped_it_ends_with_the_same_weights(toy: Path, trained: Path, tmp_path: Path) -> None:
    """Ctrl-C and SIGKILL while the caches are filled, SIGKILL twice while it learns; the same command each time."""
    run = tmp_path / "run"
    arguments = command("train", f"voc:{toy}:train", "--out", run, "--config", SETTINGS, "--save-every", "0")

    def maps() -> list[Path]:
        return list((run / "cache" / "maps").glob("*/[!.]*"))

    code, errors = stop(arguments, signal.SIGINT, lambda: len(maps()) >= 3)
    assert (code, errors[-1]) == (130, "interrupted")
    assert f"stopped; the same command continues the run in {run}" in errors
    assert not list(run.rglob(".*"))
    interrupted = {path: path.stat().st_mtime_ns for path in maps()}
    assert 3 <= len(interrupted) < 60
    code, _ = stop(arguments, signal.SIGKILL, lambda: len(maps()) >= len(interrupted) + 3)
    assert code == -signal.SIGKILL
    assert len(interrupted) < len(maps()) < 60
    assert not (run / "state.safetensors").exists()
    steps = 0
    for _ in range(2):

        def reached(least: int = steps + 40) -> bool:
            return step_of(run) >= least

        code, _ = stop(arguments, signal.SIGKILL, reached)
        assert code == -signal.SIGKILL
        assert steps < step_of(run) < 300
        steps = step_of(run)
    assert {path: path.stat().st_mtime_ns for path in interrupted} == interrupted
    done, _ = finish(arguments)
    assert done.returncode == 0, done.stderr
    ours, data = read_tensors(run / "model.safetensors")
    expected, other = read_tensors(trained / "model.safetensors")
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)
    assert data == other
    assert (run / "metrics.jsonl").read_bytes() == (trained / "metrics.jsonl").read_bytes()
    assert not (run / "state.safetensors").exists()


def step_of(run: Path) -> int:
    """Return the step that the state on disk has reached, 0 if there is none."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


@pytest.mark.slow
def test_a_finished_run_is_not_run_again_and_not_replaced(toy: Path, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("cache", "loss.png"))
    before = (run / "model.safetensors").read_bytes()
    result = train(f"voc:{toy}:train", "--out", run, "--config", SETTINGS)
    assert (result.exit_code, result.stdout) == (0, f"{run / 'model.safetensors'}\n")
    assert "holds the finished run already" in result.stderr
    assert (run / "loss.png").exists()
    assert not (run / "cache").exists()
    for change, difference in (
        (["--set", "epochs=9"], "a run with epochs=20 instead of 9"),
        (["--classes", "circle,square"], "a run with the classes circle, square, triangle"),
        ([], "a run with other photos, annotations or proposals"),
    ):
        spec = f"voc:{toy}:train" if change else f"voc:{toy}:test"
        result = train(spec, "--out", run, "--config", SETTINGS, *change)
        assert result.exit_code == 1
        assert (
            f"model.safetensors: expected a folder without a run, or with this one, got {difference}" in result.stderr
        )
    assert (run / "model.safetensors").read_bytes() == before
    assert not (run / "cache").exists()


def train(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["train", *map(str, arguments)])


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a toy set of 6 training images in the current folder, with files that are not as they should be."""
    monkeypatch.chdir(tmp_path)
    draw(Path("toy"), 8)
    lists = Path("toy/ImageSets/Main")
    (lists / "empty.txt").write_text("")
    (lists / "lost.txt").write_text("999999\n")
    (lists / "cut.txt").write_text("000000\n000003\n")
    xml = Path("toy/Annotations/000003.xml")
    xml.write_text(xml.read_text()[:-30])
    Path("bad.yaml").write_text("epoch: 3\n")
    Path("list.yaml").write_text("- 3\n")
    Path("file").write_text("")
    return tmp_path


GOOD = "voc:toy:test"  # two whole images


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["voc:toy:val"], 1, "val.txt: expected the list of a split's images; the splits here: cut, empty, lost, test"),
        (["voc:toy:empty"], 1, "empty.txt: expected one image name per line, got none"),
        (["voc:toy:lost"], 1, "999999.xml: expected a VOC annotation, got no such file"),
        (["voc:toy:cut"], 1, "000003.xml: expected VOC XML, got a damaged or truncated file"),
        (["voc:nowhere:train"], 1, "nowhere/JPEGImages: expected the folder of a VOC tree"),
        (["coco:none.json:toy"], 1, "none.json: expected a COCO annotation file, got no such file"),
        (["toy"], 1, "toy: expected voc:ROOT:SPLIT or coco:JSON:IMAGES"),
        ([GOOD, GOOD], 1, "expected every image in one of the data sets only"),
        ([GOOD, "--classes", "cat"], 1, "expected objects of the classes cat, got only circle, square"),
        ([GOOD, "--classes", "circle,cat"], 2, "--classes: expected classes that DATA has (circle, square"),
        ([GOOD, "--classes", "circle,"], 1, "expected"),
        ([GOOD, "--set", "epoch=3"], 1, "--set epoch=3: expected settings among detector, trunk, layers"),
        ([GOOD, "--set", "epochs"], 1, "--set: expected key=value, got 'epochs'"),
        ([GOOD, "--set", "epochs=many"], 1, "--set epochs=many: expected int for epochs, got 'many'"),
        ([GOOD, "--set", "epochs=0"], 1, "expected epochs of at least 1, got 0"),
        ([GOOD, "--set", "trunk=lenet"], 1, "expected a trunk among efficientnet_lite0"),
        ([GOOD, "--set", "layers=[conv9]"], 1, "expected layers of efficientnet_lite0 among blocks.4"),
        ([GOOD, "--set", "levels=[4,3]"], 1, "expected pyramid levels that divide the first, got (4, 3)"),
        ([GOOD, "--set", "projection=outside"], 1, "expected a projection among nearest, inside"),
        ([GOOD, "--set", "proposals=dowsing"], 1, "expected a proposer named single, fast"),
        ([GOOD, "--config", "bad.yaml"], 1, "bad.yaml: expected settings among detector, trunk"),
        ([GOOD, "--config", "list.yaml"], 1, "list.yaml: expected `key: value` lines, got list"),
        ([GOOD, "--config", "none.yaml"], 2, "'none.yaml' does not exist"),
        ([GOOD, "--device", "warp"], 2, "--device: expected one of cpu"),
        ([GOOD, "--cache", "file/cache"], 2, "--cache: expected a folder that can be written, got file/cache"),
        ([GOOD, "--out", "file"], 2, "Directory 'file' is a file"),
        ([GOOD, "--out", "file/run"], 2, "--out: expected a folder that can be written, got file/run"),
        ([], 2, "Missing argument 'DATA...'"),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_is_written(
    small: Path, arguments: list[str], code: int, message: str
) -> None:
    before = sorted(path for path in small.rglob("*"))
    result = train(*arguments, *([] if "--out" in arguments else ["--out", "run"]))
    assert result.exit_code == code, result.stderr
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("compiling", "2 images"))]
    assert len(lines) == 1
    assert lines[0].startswith("sppnet: error: ")
    assert message in lines[0]
    assert result.stdout == ""
    assert sorted(path for path in small.rglob("*")) == before


def test_a_damaged_photo_and_a_cache_of_others_are_named(small: Path) -> None:
    quick = ["--config", str(SETTINGS), "--set", "epochs=1", "--threads", "1", "--cache", "cache"]
    photo = Path("toy/JPEGImages/000001.jpg")
    whole = photo.read_bytes()
    photo.write_bytes(whole[:700] + bytes(len(whole) - 700))
    photo.write_bytes(whole[:700])
    result = train(GOOD, "--out", "run", *quick)
    assert result.exit_code == 1
    assert "000001.jpg: expected a whole image, got a truncated or damaged one" in result.stderr.splitlines()[-1]
    photo.write_bytes(whole)
    result = train(GOOD, "--out", "run", *quick)
    assert result.exit_code == 1
    line = result.stderr.splitlines()[-1]
    assert f"000001.jpg ({len(whole)} bytes), got that of another toy_000001, of 700 bytes" in line
    assert "choose another --cache" in line
    assert not Path("run").exists()


def test_photos_that_are_held_out_are_measured(small: Path) -> None:
    quick = ["--config", str(SETTINGS), "--threads", "1", "--set", "epochs=2", "--set", "holdout=0.4"]
    Path("toy/ImageSets/Main/all.txt").write_text("".join(f"{n:06d}\n" for n in (0, 1, 2, 4, 5)))
    result = train("voc:toy:all", "--out", "run", *quick)
    assert result.exit_code == 0, result.stderr
    metrics = json.loads(Path("run/holdout.json").read_text())
    assert list(metrics) == ["voc07", "voc10"]
    assert list(metrics["voc07"]["per_class"]) == list(load_detector(Path("run/model.safetensors")).class_names)
    assert json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])["step"] == 2  # 3 of 5 images, one batch
    result = train("voc:toy:all", "--out", "other", *quick[:-1], "holdout=0.01")
    assert result.exit_code == 1
    assert "holdout=0.01: expected images with objects held out, got none" in result.stderr


def test_the_help_teaches() -> None:
    text = " ".join(train("--help").stdout.split())
    for part in ("voc:ROOT:SPLIT", "coco:JSON:IMAGES", "the same command continues", "RUN/model.safetensors"):
        assert part in text
    assert (REPOSITORY / "configs" / "toy.yaml").is_file()
    assert "configs/toy.yaml" in text
