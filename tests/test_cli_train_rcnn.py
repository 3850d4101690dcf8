"""Check `sppnet train --detector rcnn`: what it learns, that it continues when it was killed, and what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torchvision.ops import box_iou

from detector.checkpoints import load_detector, read_tensors
from detector.cli import main
from detector.datasets import open_dataset
from detector.rcnn import RCNN
from tests.sources import REPOSITORY
from tests.toy import CLASSES, SETTINGS, command, draw, finish, stop

SHAPE = ("crops_per_image=24", "regions_per_image=12", "max_proposals=150")


def settings(*changes: str) -> list[str]:
    return ["--config", str(SETTINGS), *(part for change in (*SHAPE, *changes) for part in ("--set", change))]


def run_command(*arguments: str | Path) -> Result:
    """Run `sppnet ...` in this process, on one core."""
    threads = torch.get_num_threads()
    try:
        return CliRunner().invoke(main, [*map(str, arguments), "--threads", "1"])
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a toy set of 30 training and 10 test images."""
    return draw(tmp_path_factory.mktemp("toy"), 40)


@pytest.fixture(scope="module")
def trained(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that nothing stopped, and what it said, in run.txt."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    done, _ = finish(command("train", f"voc:{toy}:train", "--detector", "rcnn", "--out", run, *settings()))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{run / 'model.safetensors'}\n"
    (run / "run.txt").write_text(done.stderr)
    return run


@pytest.mark.slow
def test_a_drawn_set_is_learned_and_measured(toy: Path, trained: Path) -> None:
    model = trained / "model.safetensors"
    result = run_command("evaluate", "--model", model, "--data", f"voc:{toy}:test", "--out", trained / "test")
    assert result.exit_code == 0, result.stderr
    assert json.loads((trained / "test" / "metrics.json").read_text())["voc07"]["map"] > 0.8


@pytest.mark.slow
def test_a_run_leaves_a_detector_of_its_kind(trained: Path) -> None:
    left = {entry.name for entry in trained.iterdir() if entry.suffix != ".txt"} - {"test"}
    assert left == {"cache", "loss.png", "metrics.jsonl", "model.safetensors", "run.json"}
    assert {entry.name for entry in (trained / "cache").iterdir() if entry.is_dir()} == {"crops", "proposals"}
    assert len(list((trained / "cache" / "crops").glob("*/*.safetensors"))) == 30
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 7 * 20
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    net = load_detector(trained / "model.safetensors")
    assert isinstance(net, RCNN)
    assert net.class_names == CLASSES
    assert json.loads((trained / "run.json").read_text())["settings"] == net.config.to_dict()
    assert all(name.split(".")[0] in ("reduction", "head") for name in read_tensors(trained / "model.safetensors")[0])
    assert "Warning" not in (trained / "run.txt").read_text()


@pytest.mark.slow
def test_a_photo_is_searched(toy: Path, trained: Path, tmp_path: Path) -> None:
    """What is found in a photo with a score above 0.9 are its objects."""
    sample, folder = open_dataset(f"voc:{toy}:test", CLASSES).samples[0], tmp_path / "found"
    result = run_command("detect", sample.path, "--model", trained / "model.safetensors", "--out", folder)
    assert result.exit_code == 0, result.stderr
    assert {entry.name for entry in folder.iterdir()} == {sample.path.name, "detections.json"}
    (entry,) = json.loads((folder / "detections.json").read_text())
    sure = [found for found in entry["detections"] if found["score"] > 0.9]
    labels = torch.tensor([CLASSES.index(found["label"]) for found in sure])
    overlaps = box_iou(torch.tensor([found["box"] for found in sure]), sample.truth.boxes)
    assert len(sure) == len(sample.truth)
    assert bool((overlaps.max(dim=1).values > 0.5).all())
    assert torch.equal(labels, sample.truth.labels[overlaps.argmax(dim=1)])


@pytest.mark.slow
def test_a_run_that_was_killed_ends_with_the_same_weights(toy: Path, trained: Path, tmp_path: Path) -> None:
    """SIGKILL while the crops are computed, and twice while it learns; the same command each time."""
    run = tmp_path / "run"
    data = (f"voc:{toy}:train", "--detector", "rcnn", "--out", run, "--save-every", "0", *settings())
    arguments = command("train", *data)

    def crops() -> list[Path]:
        return list((run / "cache" / "crops").glob("*/[!.]*"))

    code, _ = stop(arguments, signal.SIGKILL, lambda: len(crops()) >= 3)
    assert code == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in crops()}
    assert 3 <= len(kept) < 30
    assert not (run / "state.safetensors").exists()
    steps = 0
    for _ in range(2):

        def reached(least: int = steps + 20) -> bool:
            return step_of(run) >= least

        code, _ = stop(arguments, signal.SIGKILL, reached)
        assert code == -signal.SIGKILL
        assert steps < step_of(run) < 140
        steps = step_of(run)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    done, _ = finish(arguments)
    assert done.returncode == 0, done.stderr
    ours, data_of_ours = read_tensors(run / "model.safetensors")
    expected, data_of_other = read_tensors(trained / "model.safetensors")
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)
    assert data_of_ours == data_of_other
    assert (run / "metrics.jsonl").read_bytes() == (trained / "metrics.jsonl").read_bytes()


def step_of(run: Path) -> int:
    """Return the step that the state on disk has reached, 0 if there is none."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a toy set of 6 training images with a short run of each kind, `sppnet` and `rcnn`."""
    folder = tmp_path_factory.mktemp("quick")
    draw(folder / "toy", 8)
    for kind in ("sppnet", "rcnn"):
        result = train(folder, "--detector", kind, "--out", folder / kind, *settings("epochs=2"))
        assert result.exit_code == 0, result.stderr
    return folder


def train(folder: Path, *arguments: str | Path) -> Result:
    return run_command("train", f"voc:{folder / 'toy'}:train", "--cache", folder / "cache", *arguments)


@pytest.mark.parametrize(("first", "second"), [("sppnet", "rcnn"), ("rcnn", "sppnet")])
def test_a_folder_holds_one_kind_of_run(quick: Path, first: str, second: str) -> None:
    before = {path: path.read_bytes() for path in (quick / first).iterdir()}
    result = train(quick, "--detector", second, "--out", quick / first, *settings("epochs=2"))
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if not line.startswith("6 images")]
    model = quick / first / "model.safetensors"
    assert lines == [
        f"sppnet: error: {model}: expected a folder without a run, or with this one, "
        f'got a run with detector="{first}" instead of "{second}"; choose another --out'
    ]
    assert {path: path.read_bytes() for path in (quick / first).iterdir()} == before


def test_both_kinds_share_proposals_in_a_cache(quick: Path) -> None:
    """Six photos, three kinds of files; a second run of R-CNN with another rate learns from the same crops."""
    cache = quick / "cache"
    files = {path: path.stat().st_mtime_ns for path in cache.glob("*/*/toy_*")}
    kinds = sorted(path.relative_to(cache).parts[0] for path in files)
    assert kinds == ["crops"] * 6 + ["maps"] * 6 + ["proposals"] * 6
    other = quick / "other"
    result = train(quick, "--detector", "rcnn", "--out", other, *settings("epochs=2", "learning_rate=0.0005"))
    assert result.exit_code == 0, result.stderr
    assert "proposals and maps" not in result.stderr
    assert {path: path.stat().st_mtime_ns for path in cache.glob("*/*/toy_*")} == files
    weights = [read_tensors(run / "model.safetensors")[0]["head.classes.weight"] for run in (quick / "rcnn", other)]
    assert not torch.equal(*weights)
    shutil.rmtree(other)


def test_a_damaged_crop_file_is_made_again(quick: Path) -> None:
    path = sorted((quick / "cache" / "crops").glob("*/*"))[2]
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    result = train(quick, "--detector", "rcnn", "--out", quick / "again", *settings("epochs=2"))
    assert result.exit_code == 0, result.stderr
    assert path.read_bytes() == whole
    ours, expected = (read_tensors(quick / name / "model.safetensors")[0] for name in ("again", "rcnn"))
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    shutil.rmtree(quick / "again")


def test_photos_that_are_held_out_are_measured(quick: Path) -> None:
    """A third of six photos are measured, four are learned from: one batch an epoch."""
    run = quick / "holdout"
    result = train(quick, "--detector", "rcnn", "--out", run, *settings("epochs=2", "holdout=0.34"))
    assert result.exit_code == 0, result.stderr
    metrics = json.loads((run / "holdout.json").read_text())
    assert list(metrics) == ["voc07", "voc10"]
    assert list(metrics["voc07"]["per_class"]) == list(CLASSES)
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--detector", "rcnn", "--set", "region_mean=true"], 1, "expected no region_mean for rcnn"),
        (["--detector", "rcnn", "--set", "crops_per_image=0"], 1, "expected crops_per_image of at least 1, got 0"),
        (["--detector", "fast"], 2, "'--detector': 'fast' is not one of 'sppnet', 'rcnn'"),
        (["--set", "detector=fast"], 1, "expected a detector among sppnet, rcnn, svm, got 'fast'"),
    ],
)
def test_mistakes_are_told_in_one_line(quick: Path, arguments: list[str], code: int, message: str) -> None:
    result = train(quick, "--out", quick / "none", *arguments)
    assert result.exit_code == code
    (line,) = result.stderr.splitlines()
    assert line.startswith("sppnet: error: ")
    assert message in line.replace("Invalid value for ", "")
    assert not (quick / "none").exists()


def test_the_settings_of_the_race_are_those_of_the_shipped_model() -> None:
    from detector.config import load_config

    config = load_config(REPOSITORY / "configs" / "rcnn-lite0.yaml")
    assert config.to_dict() == load_config(None).to_dict() | {"detector": "rcnn"}
