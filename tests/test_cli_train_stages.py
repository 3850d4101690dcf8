"""Check the paper's three stages as commands: from the trunk's classifier, fine-tuned, then machines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from detector.checkpoints import load_detector, read_tensors, save_detector
from detector.cli import main
from detector.example_files import load_examples
from detector.machines import MachineNet
from detector.pretraining import class_names
from tests.toy import CLASSES, SETTINGS, SMALL, draw, small_model

TINY = [
    *("--config", str(SETTINGS), "--set", "layers=[blocks.4,blocks.6]", "--set", "shorter=96", "--set", "longest=192"),
    *("--set", "channels=16", "--set", "hidden=32", "--threads", "1"),
]
TUNED = [*TINY, "--preset", "code", "--set", "scales=[96,128]", "--set", "regions_per_image=16", "--set", "epochs=6"]


def train(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["train", *map(str, arguments)])


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with six photos and the runs of all stages, first, second and third."""
    folder = tmp_path_factory.mktemp("stages")
    data = f"voc:{draw(folder / 'toy', 8)}:train"
    for name, more in (
        ("first", ["--task", "pretrain", *TINY, "--set", "epochs=4", "--set", "cascade=300"]),
        ("second", ["--start", folder / "first/model.safetensors", *TUNED]),
        ("third", ["--start", folder / "second/model.safetensors", "--detector", "svm", "--classes", "all",
                   "--set", "svm_layer=fc6", "--threads", "1"]),
    ):  # fmt: skip
        result = train(data, "--out", folder / name, "--cache", folder / "cache", *more)
        assert result.exit_code == 0, result.stderr
        assert result.stdout == f"{folder / name / 'model.safetensors'}\n"
        (folder / f"{name}.txt").write_text(result.stderr)
    return folder


def record(run: Path) -> dict[str, object]:
    loaded: dict[str, object] = json.loads((run / "run.json").read_text())
    return loaded


def test_each_stage_leaves_a_detector_and_says_what_it_was_made_from(stages: Path) -> None:
    first, second, third = (
        load_detector(stages / n / "model.safetensors", engine="eager") for n in ("first", "second", "third")
    )
    assert first.class_names == tuple(class_names())
    assert second.class_names == third.class_names == CLASSES
    assert isinstance(third, MachineNet)
    assert third.config.scales == (96, 128)
    assert bool(third.machines.weight.any())
    made = {name: record(stages / name) for name in ("first", "second", "third")}
    assert (made["first"]["task"], "start" in made["first"]) == ("pretrain", False)
    assert (made["second"]["start"], "task" in made["second"]) == (str(stages / "first/model.safetensors"), False)
    assert made["third"]["start"] == str(stages / "second/model.safetensors")
    for name, net in (("first", first), ("second", second), ("third", third)):
        assert made[name]["classes"] == list(net.class_names)
        assert made[name]["settings"] == net.config.to_dict()
    assert (second.config.learn, second.config.optimizer, second.config.random_scale) == ("fc", "sgd", True)
    assert (second.config.regions_per_image, second.config.dropout) == (
        16,
        0.0,
    )  # --set and toy.yaml win over the preset
    assert f"--start {stages / 'first/model.safetensors'} --preset code" in (stages / "first.txt").read_text()
    assert "sppnet evaluate" in (stages / "second.txt").read_text()


def test_layers_before_the_pyramid_stay_and_fc6_does_not(stages: Path) -> None:
    first, second, third = (read_tensors(stages / n / "model.safetensors")[0] for n in ("first", "second", "third"))
    for name in first:
        if name.startswith(("reduction.", "head.norm.")):
            assert torch.equal(first[name], second[name])
            assert torch.equal(first[name], third[name])
    assert not torch.equal(first["head.fc6.weight"], second["head.fc6.weight"])
    assert torch.equal(second["head.fc6.weight"], third["head.fc6.weight"])
    rows = [json.loads(line) for line in (stages / "second/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 6
    assert rows[-1]["learning_rate"] == pytest.approx(0.001 / 100)  # toy.yaml's rate, which is the code's


def test_a_finished_stage_is_not_run_again_and_another_is_told_apart(stages: Path) -> None:
    data, second = f"voc:{stages / 'toy'}:train", stages / "second"
    before = (second / "model.safetensors").read_bytes()
    again = train(
        data, "--out", second, "--cache", stages / "cache", "--start", stages / "first/model.safetensors", *TUNED
    )
    assert (again.exit_code, "holds the finished run already" in again.stderr) == (0, True)
    other = train(data, "--out", second, "--cache", stages / "cache", "--start", second / "model.safetensors", *TUNED)
    assert other.exit_code == 1
    words = f"--start {stages / 'first/model.safetensors'} instead of {second / 'model.safetensors'}"
    assert f"expected a folder without a run, or with this one, got a run with {words}" in other.stderr
    task = train(
        data, "--out", stages / "first", "--cache", stages / "cache", *TINY, "--set", "epochs=4", "--set", "cascade=300"
    )
    assert task.exit_code == 1
    assert "got a run with --task pretrain instead of detect" in task.stderr
    assert "n15075141" not in task.stderr  # not all of a thousand names
    assert (second / "model.safetensors").read_bytes() == before


def test_a_fine_tuning_is_measured_on_photos_held_out(stages: Path, tmp_path: Path) -> None:
    data = f"voc:{stages / 'toy'}:train"
    more = [*TUNED, "--cache", stages / "cache", "--set", "holdout=0.34"]
    result = train(data, "--out", tmp_path / "run", "--start", stages / "second/model.safetensors", *more)
    assert result.exit_code == 0, result.stderr
    assert list(json.loads((tmp_path / "run/holdout.json").read_text())) == ["voc07", "voc10"]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with two photos and a detector of another shape; it is the current one."""
    monkeypatch.chdir(tmp_path)
    draw(Path("toy"), 8)
    save_detector(small_model(SMALL), Path("small.safetensors"))
    return tmp_path


GOOD = "voc:toy:test"
START = ["--start", "small.safetensors"]
SHAPE = ["--set", "layers=[blocks.4]", "--set", "channels=8", "--set", "hidden=32"]  # of its layers, but for one


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--preset", "code"], 2, "learn=fc: expected --start MODEL, whose layers before the pyramid are used"),
        (["--set", "learn=fc"], 2, "learn=fc: expected --start MODEL"),
        (["--preset", "fast"], 2, "'fast' is not one of 'paper', 'code'"),
        (["--task", "pretrain", "--preset", "code"], 2, "--task pretrain: expected no --detector and no --preset"),
        (["--task", "pretrain", "--detector", "rcnn"], 2, "--task pretrain: expected no --detector and no --preset"),
        (["--task", "pretrain", "--set", "detector=rcnn"], 2, "expected detector=sppnet and holdout=0, got others"),
        (["--task", "pretrain", "--set", "holdout=0.5"], 2, "expected detector=sppnet and holdout=0, got others"),
        (["--task", "pretrain", "--set", "learn=fc"], 2, "learn=fc: expected --start MODEL"),
        (["--task", "pretrain", "--classes", "circle"], 2, "--task pretrain: expected neither --classes nor --start"),
        (["--task", "pretrain", *START], 2, "--task pretrain: expected neither --classes nor --start"),
        (["--task", "pretrain", "--detector", "svm", *START], 2, "--detector svm: expected --start MODEL, no --preset"),
        (["--task", "pretrain", "--set", "pretrained=false"], 1, "expected a trunk with ImageNet's weights and its"),
        (["--task", "pretrain", "--set", "trunk=zf5", "--set", "pretrained=false"], 1, "got zf5 (random"),
        (["--task", "classify", "--preset", "code"], 2, "--task classify: expected no --detector, --start or --preset"),
        (["--task", "classify", *START], 2, "--task classify: expected no --detector, --start or --preset"),
        (["--detector", "svm"], 2, "--detector svm: expected --start MODEL, no --preset, the task detect and the dev"),
        (["--detector", "svm", *START, "--preset", "code"], 2, "--detector svm: expected --start MODEL, no --preset"),
        (["--set", "detector=svm"], 2, "detector=svm: expected --detector svm and --start MODEL"),
        (["--detector", "rcnn", "--preset", "code", *START], 1, "expected learn=all for rcnn and with region_mean"),
        (["--start", "none.safetensors"], 1, "none.safetensors: expected a safetensors file, got nothing there"),
        (["--start", "some"], 1, "expected a model among "),
        ([*START, "--preset", "code"], 1, "expected the trunk of its layers, efficientnet_lite0 blocks.4, got"),
        ([*START, *SHAPE], 1, "head.context.weight"),
        (["--set", "rate_drops=[2]"], 1, "expected rate_drops in (0, 1), ascending, got (2.0,)"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_told_in_one_line(
    small: Path, arguments: list[str], code: int, message: str
) -> None:
    before = sorted(small.rglob("*"))
    result = train(GOOD, "--out", "run", *arguments)
    assert result.exit_code == code, result.stderr
    assert result.exception is None or isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("compiling", "2 images"))]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("sppnet: error: ")
    assert message in lines[0]
    assert result.stdout == ""
    assert sorted(small.rglob("*")) == before


def test_machines_learn_the_classes_they_are_told(stages: Path, tmp_path: Path) -> None:
    data, start = f"voc:{stages / 'toy'}:train", stages / "second/model.safetensors"
    more = ["--detector", "svm", "--start", start, "--cache", stages / "cache", "--threads", "1"]
    result = train(data, "--out", tmp_path / "two", *more, "--classes", "square, circle", "--set", "C=0.02")
    assert result.exit_code == 0, result.stderr
    assert load_examples(tmp_path / "two/examples.safetensors")[1].svm.C == 0.02
    assert set(load_detector(tmp_path / "two/model.safetensors").class_names) == {"square", "circle"}
    joint = train(data, "--out", tmp_path / "joint", *more, "--classes", "circle", "--set", "box_regression=joint")
    assert joint.exit_code == 1
    assert "box_regression=joint: expected the classes of --start, got others" in joint.stderr
    assert not (tmp_path / "joint").exists()
