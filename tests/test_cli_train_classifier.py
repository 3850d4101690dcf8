"""Check `sppnet train --task classify` from a few small images to a finished model, and what it refuses."""

from __future__ import annotations

import json
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from detector.checkpoints import read_tensors
from detector.classifier_files import load_classifier
from detector.cli import main
from detector.images import read_image
from tests.test_cli_classify import KINDS, draw_kinds
from tests.test_cli_train import step_of
from tests.toy import CLASSES, command, draw, finish, stop

QUICK = ("--set", "side=64", "--set", "levels=[2,1]", "--threads", "1")
# Four steps in each of the epochs, the sides of which alternate.
ALL = [
    "--task", "classify", "--set", "learn=all", "--set", "head=fc", "--set", "trunk=small", "--set", "pretrained=false",
    "--set", "sizes=[40,56]", "--set", "levels=[2,1]", "--set", "images_per_batch=6",
]  # fmt: skip


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of 24 images of 3 classes."""
    return draw_kinds(tmp_path_factory.mktemp("data") / "kinds", 8)


@pytest.fixture(scope="module")
def whole(kinds: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Return the folder of a run that nothing stopped, and what it said."""
    run = tmp_path_factory.mktemp("runs") / "my run"
    return run, train(f"folder:{kinds}", "--out", run, *QUICK)


def train(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["train", "--task", "classify", *map(str, arguments)])


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """Return bytes and time of every file below a folder."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def guess(model: Path, image: Path) -> str:
    return load_classifier(model).predict(read_image(image)).top(1)[0][0]


def test_a_run_leaves_its_model_its_settings_and_its_maps(whole: tuple[Path, Result], kinds: Path) -> None:
    run, result = whole
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{run / 'model.safetensors'}\n"
    assert "24 images, one class each, 3 classes: blue, green, red\n" in result.stderr
    assert {entry.name for entry in run.iterdir()} == {"cache", "model.safetensors", "run.json"}
    assert len(list((run / "cache" / "maps").glob("*/*.safetensors"))) == 24
    net, record = load_classifier(run / "model.safetensors"), read(run / "run.json")
    assert (net.class_names, net.multi_label) == (("blue", "green", "red"), False)
    assert (record["data"], record["classes"]) == ([f"folder:{kinds}"], list(net.class_names))
    assert record["settings"] == net.config.to_dict()
    assert (net.config.side, net.config.levels, net.config.head) == (64, (2, 1), "svm")
    fresh = draw_kinds(run.parent / "fresh", 2, seed=99)
    for name in net.class_names:
        assert [guess(run / "model.safetensors", path) for path in (fresh / name).iterdir()] == [name, name]


def test_a_finished_run_is_not_run_again_and_not_replaced(
    whole: tuple[Path, Result], kinds: Path, tmp_path: Path
) -> None:
    run, _ = whole
    before = contents(run)
    result = train(f"folder:{kinds}", "--out", run, *QUICK)
    assert (result.exit_code, result.stdout) == (0, f"{run / 'model.safetensors'}\n")
    assert f"{run} holds the finished run already\n" in result.stderr
    more = draw_kinds(tmp_path / "kinds", 3)
    for spec, change, difference in (
        (f"folder:{kinds}", ["--set", "side=96"], "a run with side=64 instead of 96"),
        (f"folder:{kinds}", ["--set", "C=2.5"], "a run with C=1.0 instead of 2.5"),
        (f"folder:{kinds}", ["--classes", "red,blue"], "a run with the classes blue, green, red"),
        (f"folder:{kinds}", [*ALL, "--set", "side=64"], 'head="svm" instead of "fc"'),
        (f"folder:{more}", [], "a run with other photos"),
    ):
        result = train(spec, "--out", run, *QUICK, *change)
        assert (result.exit_code, result.stdout) == (1, "")
        line = result.stderr.splitlines()[-1]
        expected = f"{run / 'model.safetensors'}: expected a folder without a run, or with this one, got "
        assert line.startswith(f"sppnet: error: {expected}")
        assert difference in line
    assert contents(run) == before


def test_the_next_steps_work_as_they_are_printed(tmp_path: Path) -> None:
    toy = draw(tmp_path / "my toy", 16)
    result = train(f"voc:{toy}:train", "--out", tmp_path / "my run", *QUICK)
    assert result.exit_code == 0, result.stderr
    assert "12 images, any number of classes each, 3 classes: circle, square, triangle\n" in result.stderr
    first, second = result.stderr.splitlines()[-2:]
    model = tmp_path / "my run" / "model.safetensors"
    assert result.stdout == f"{model}\n"
    assert (first.split(": ")[0], second.split(": ")[0].strip()) == ("next", "or")
    words = shlex.split(first.split(": ", 1)[1])
    assert words == ["sppnet", "evaluate", "--task", "classify", "--model", str(model), "--data", f"voc:{toy}:test"]
    done = CliRunner().invoke(main, words[1:])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.split()[:3] == ["class", "voc07", "voc10"]
    photo = toy / "JPEGImages" / "000001.jpg"
    words = [str(photo) if word == "PHOTO" else word for word in shlex.split(second.split(": ", 1)[1])]
    done = CliRunner().invoke(main, words[1:])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith(f"{photo}: ")
    net = load_classifier(model)
    assert (net.class_names, net.multi_label) == (CLASSES, True)


def test_a_table_names_images_and_what_they_show(kinds: Path, tmp_path: Path) -> None:
    names = [path.relative_to(kinds) for path in sorted(kinds.rglob("*.png"))]
    rows = [f"{kinds / name},{'green;warm' if name.parts[0] == 'red' else name.parts[0]}\n" for name in names]
    (tmp_path / "one.csv").write_text("path,label\n" + "".join(row.replace("green;warm", "red") for row in rows))
    (tmp_path / "many.csv").write_text("path,label\n" + "".join(rows))
    shared = ("--cache", tmp_path / "cache", *QUICK)
    for kind, classes, scores in (
        ("one", ("blue", "green", "red"), [0, 0, 1]),
        ("many", ("blue", "green", "warm"), [0, 1, 1]),
    ):
        result = train(f"csv:{tmp_path / kind}.csv", "--out", tmp_path / kind, *shared)
        assert result.exit_code == 0, result.stderr
        net = load_classifier(tmp_path / kind / "model.safetensors")
        assert (net.class_names, net.multi_label) == (classes, kind == "many")
        found = net.predict(read_image(kinds / "red" / "0.png")).scores
        assert (found > 0.5).int().tolist() == scores
        assert not (tmp_path / kind / "cache").exists()
    assert "maps:" not in result.stderr  # the second run finds those of the first


def test_images_that_are_held_out_are_measured(kinds: Path, tmp_path: Path) -> None:
    result = train(f"folder:{kinds}", "--out", tmp_path / "run", *QUICK, "--set", "holdout=0.25")
    assert result.exit_code == 0, result.stderr
    metrics = read(tmp_path / "run" / "holdout.json")
    assert list(metrics) == ["top1", "top5"]
    assert list(metrics["top1"]) == ["accuracy", "interval", "per_class"]
    assert metrics["top1"]["accuracy"] == 1  # flat colours; six images that it did not learn from
    assert "classifying: 100%" in result.stderr
    assert "6/6" in result.stderr
    table = [line.split() for line in result.stderr.splitlines()]
    assert ["class", "top1", "top5"] in table
    assert ["overall", "100.00", "100.00"] in table
    (tmp_path / "run" / "holdout.json").unlink()
    assert train(f"folder:{kinds}", "--out", tmp_path / "run", *QUICK, "--set", "holdout=0.25").exit_code == 0
    assert read(tmp_path / "run" / "holdout.json") == metrics


@pytest.mark.parametrize("part", ["0.01", "0.99"])
def test_a_part_that_leaves_no_image_on_a_side_is_refused(kinds: Path, tmp_path: Path, part: str) -> None:
    result = train(f"folder:{kinds}", "--out", tmp_path / "run", *QUICK, "--set", f"holdout={part}")
    assert result.exit_code == 1
    assert f"holdout={part}: expected images" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "settings",
    [
        ["head=fc", "hidden=16", "epochs=20"],
        ["head=fc", "views=ten", "dropout=0.3", "levels=[3,2]"],
        ["pooling=average"],
        ["pooling=average", "views=ten-crop", "flip=false", "normalise=false"],
        ["trunk=small", "pretrained=false", "views=warp"],
        ["layer=blocks.4", "views=many", "projection=inside"],
    ],
)
def test_other_heads_views_and_pooling_learn_too(kinds: Path, tmp_path: Path, settings: list[str]) -> None:
    few = [option for setting in settings for option in ("--set", setting)]
    result = train(f"folder:{kinds}", "--out", tmp_path / "run", *QUICK, *few)
    assert result.exit_code == 0, result.stderr
    model = tmp_path / "run" / "model.safetensors"
    assert [guess(model, kinds / name / "3.png") for name in KINDS] == list(KINDS)


def test_a_random_trunk_is_the_same_when_the_model_is_used(kinds: Path, tmp_path: Path) -> None:
    """Share a cache with a run of the published weights: maps of random ones are others."""
    shared = ("--cache", tmp_path / "cache", *QUICK)
    assert train(f"folder:{kinds}", "--out", tmp_path / "published", *shared).exit_code == 0
    result = train(f"folder:{kinds}", "--out", tmp_path / "random", *shared, "--set", "pretrained=false")
    assert result.exit_code == 0, result.stderr
    model = tmp_path / "random" / "model.safetensors"
    assert [guess(model, kinds / name / "3.png") for name in KINDS] == list(KINDS)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--detector", "rcnn"], 2, "--task classify: expected no --detector, --start or --preset, got one"),
        (["--set", "epoch=3"], 1, "--set epoch=3: expected settings among trunk, layer, pretrained, levels, pooling"),
        (["--set", "proposals=fast"], 1, "got proposals"),
        (["--set", "head=tree"], 1, "expected a head among svm, fc, got 'tree'"),
        (["--set", "learn=all"], 1, "expected head=fc to learn all layers"),
        (["--set", "views=nine"], 1, "expected views among full, crop, warp, ten-crop, ten, many, got 'nine'"),
        (["--set", "trunk=lenet"], 1, "expected a trunk among efficientnet_lite0"),
        (["--set", "layer=conv9"], 1, "expected layers of efficientnet_lite0 among blocks.4"),
        (["--set", "projection=outside"], 1, "expected a projection among nearest, inside"),
        (["--set", "holdout=1"], 1, "expected dropout, average and holdout in [0, 1)"),
        (["--classes", "red,grey"], 2, "--classes: expected classes that an image of DATA shows, got grey"),
        (["--classes", "red"], 2, "DATA: expected images of at least two classes, got only red"),
        (["--device", "warp"], 2, "--device: expected one of cpu"),
        (["folder:nowhere"], 1, "nowhere: expected a folder with one folder of images per class"),
        (["csv:none.csv"], 1, "none.csv: expected a CSV file, got no such file"),
        (["photos"], 1, "photos: expected folder:ROOT, voc:ROOT:SPLIT, csv:FILE or coco:JSON:IMAGES"),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_is_written(
    kinds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    data = [] if ":" in arguments[0] or arguments == ["photos"] else [f"folder:{kinds}"]
    result = train(*data, *arguments, "--out", "run")
    assert (result.exit_code, result.stdout) == (code, "")
    lines = [line for line in result.stderr.splitlines() if " images, one class each, " not in line]
    assert len(lines) == 1
    assert lines[0].startswith("sppnet: error: ")
    assert message in lines[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [QUICK, (*ALL, "--threads", "1")], ids=["head", "all"])
def test_a_damaged_image_is_named(tmp_path: Path, options: tuple[str, ...]) -> None:
    kinds = draw_kinds(tmp_path / "kinds", 3)
    image = kinds / "green" / "1.png"
    pixels = image.read_bytes()
    image.write_bytes(pixels[:400] + b"\xa5" * (len(pixels) - 400))
    result = train(f"folder:{kinds}", "--out", tmp_path / "run", *options)
    assert (result.exit_code, result.stdout) == (1, "")
    line = result.stderr.splitlines()[-1]
    assert line.startswith(f"sppnet: error: {image}: expected a whole image, got a truncated or damaged one")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    image.write_bytes(pixels)
    kept = contents(tmp_path / "run" / "cache" / "maps")
    result = train(f"folder:{kinds}", "--out", tmp_path / "run", *options)
    assert result.exit_code == 0, result.stderr
    assert kept.items() <= contents(tmp_path / "run").items()


def test_sizes_may_be_drawn_for_every_batch(kinds: Path, tmp_path: Path) -> None:
    random = ("--set", "size_rule=random", "--set", "epochs=30", "--threads", "1")
    result = train(f"folder:{kinds}", "--out", tmp_path / "run", *ALL, *random)
    assert result.exit_code == 0, result.stderr
    sides = [json.loads(line)["side"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(sides) == 6
    assert all(40 <= side <= 56 for side in sides)
    assert len(set(sides)) > 2


@pytest.mark.slow
def test_a_run_of_all_layers_that_was_interrupted_ends_with_the_same_weights(kinds: Path, tmp_path: Path) -> None:
    options = [f"folder:{kinds}", *ALL, "--set", "epochs=60", "--save-every", "0"]
    done, _ = finish(command("train", *options, "--out", tmp_path / "whole"))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["side"]) for row in rows] == [(20 * n, (40, 56)[(n - 1) % 2]) for n in range(1, 13)]
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    run = tmp_path / "run"
    for least in (40, 100):
        code, errors = stop(
            command("train", *options, "--out", run), signal.SIGINT, lambda least=least: step_of(run) >= least
        )
        assert (code, errors[-1]) == (130, "interrupted")
        assert f"stopped; the same command continues the run in {run}" in errors
        assert {entry.name for entry in run.iterdir()} == {"metrics.jsonl", "run.json", "state.safetensors"}
        assert least <= step_of(run) < 240
    changed, _ = finish(command("train", *options, "--set", "seed=1", "--out", run))
    assert changed.returncode == 1
    assert "state.safetensors: expected a folder without a run, or with this one" in changed.stderr
    done, _ = finish(command("train", *options, "--out", run))
    assert (done.returncode, done.stdout) == (0, f"{run / 'model.safetensors'}\n")
    ours, data = read_tensors(run / "model.safetensors")
    expected, other = read_tensors(tmp_path / "whole" / "model.safetensors")
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)
    assert data == other
    assert (run / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert {entry.name for entry in run.iterdir()} == {"metrics.jsonl", "model.safetensors", "run.json"}
    assert guess(run / "model.safetensors", kinds / "red" / "0.png") == "red"


def test_the_help_teaches() -> None:
    text = " ".join(CliRunner().invoke(main, ["train", "--help"]).stdout.split())
    for part in ("--task [detect|classify|pretrain]", "what whole photos show", "folder:ROOT", "csv:FILE", "learn=all"):
        assert part in text
