"""Check `sppnet evaluate --task classify`: what it measures, writes, refuses, and how it goes on after a stop."""

from __future__ import annotations

import signal
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from detector.cli import main
from tests.test_cli_classify import KINDS, draw_kinds, read, run, trained
from tests.toy import CLASSES, command, draw, finish, stop

JOURNAL = "unfinished-classification.jsonl"


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


def evaluate(*arguments: str | Path) -> Result:
    return run("evaluate", "--task", "classify", *arguments)


def test_accuracy_is_measured_where_images_show_one_class(model: Path, tmp_path: Path) -> None:
    """Call a third of the red images green: of the eight that are called green, two are red."""
    kinds = draw_kinds(tmp_path / "kinds", 6, seed=5)
    for number in (0, 1):
        (kinds / "red" / f"{number}.png").rename(kinds / "green" / f"red-{number}.png")
    out = tmp_path / "out"
    result = evaluate("--model", model, "--data", f"folder:{kinds}", "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "18 images" in result.stderr
    table = [line.split() for line in result.stdout.splitlines()]
    for row in (
        ["class", "top1", "top5"],
        ["blue", "100.00", "100.00"],
        ["green", "75.00", "100.00"],
        ["overall", "88.89", "100.00"],
    ):
        assert row in table
    assert result.stdout.splitlines()[-1] == f"written: {out / 'scores.json'}, {out / 'metrics.json'}"
    assert sorted(path.name for path in out.iterdir()) == ["metrics.json", "scores.json"]
    metrics, kept = read(out / "metrics.json"), read(out / "scores.json")
    assert metrics["top1"]["accuracy"] == pytest.approx(16 / 18)
    assert metrics["top1"]["per_class"] == {"blue": 1, "green": 0.75, "red": 1}
    low, high = metrics["top1"]["interval"]
    assert low < 16 / 18 < high <= 1
    assert kept["class_names"] == list(KINDS)
    assert len(kept["scores"]) == 18
    assert all(sum(row) == pytest.approx(1, abs=3e-6) for row in kept["scores"].values())


def average_precisions(scores: list[float], shown: list[bool]) -> tuple[float, float]:
    """Return voc07 and voc10 of one class from the definitions: precision at a recall is the best at no less recall."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    points, hits = [], 0
    for rank, index in enumerate(order, 1):
        hits += shown[index]
        points.append((hits / sum(shown), hits / rank))

    def best(recall: float) -> float:
        return max((precision for at, precision in points if at >= recall - 1e-9), default=0.0)

    recalls = [0.0, *sorted({at for at, _ in points if at > 0})]
    return sum(best(n / 10) for n in range(11)) / 11, sum((b - a) * best(b) for a, b in pairwise(recalls))


def test_average_precision_is_measured_where_images_show_several(toy: Path, several: Path, tmp_path: Path) -> None:
    options = ("--model", several, "--data", f"voc:{toy}:test")
    result = evaluate(*options, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    metrics, kept = read(tmp_path / "out" / "metrics.json"), read(tmp_path / "out" / "scores.json")
    assert (list(metrics), kept["class_names"]) == (["voc07", "voc10"], list(CLASSES))
    texts = [(toy / "Annotations" / f"{name[-6:]}.xml").read_text() for name in kept["scores"]]
    for column, name in enumerate(CLASSES):
        scores = [row[column] for row in kept["scores"].values()]
        assert len(set(scores)) == 8  # no ties
        expected = average_precisions(scores, [f"<name>{name}</name>" in text for text in texts])
        assert [metrics[metric]["per_class"][name] for metric in metrics] == pytest.approx(expected)
    for metric in metrics.values():
        assert metric["map"] == pytest.approx(np.mean(list(metric["per_class"].values())))
    only = evaluate(*options, "--metric", "voc10", "--out", tmp_path / "only")
    assert only.exit_code == 0, only.stderr
    assert read(tmp_path / "only" / "metrics.json") == {"voc10": metrics["voc10"]}


def test_no_interval_may_be_asked_for(model: Path, tmp_path: Path) -> None:
    data = f"folder:{draw_kinds(tmp_path / 'kinds', 2)}"
    out = tmp_path / "out"
    options = ("--metric", "top2,voc10", "--no-interval", "--out", out)
    result = evaluate("--model", model, "--data", data, *options)
    assert result.exit_code == 0, result.stderr
    assert "95 %" not in result.stdout
    assert {metric: "interval" in row for metric, row in read(out / "metrics.json").items()} == {
        "top2": False,
        "voc10": False,
    }


def damage(path: Path) -> bytes:
    """Spoil the second half of an image; return what it was."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + b"\xa5" * (len(whole) - len(whole) // 2))
    return whole


def test_a_stopped_evaluation_goes_on_behind_the_last_image(model: Path, tmp_path: Path) -> None:
    """Stop it by the sixth of twelve images, and damage the first meanwhile: only with other views is it read again."""
    kinds, out = draw_kinds(tmp_path / "kinds", 4), tmp_path / "out"
    options = ("--model", model, "--data", f"folder:{kinds}")
    assert evaluate(*options, "--out", tmp_path / "whole").exit_code == 0
    first, sixth = kinds / "blue" / "0.png", kinds / "green" / "1.png"
    pixels = damage(sixth)
    result = evaluate(*options, "--out", out)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1].startswith(f"sppnet: error: {sixth}: expected a whole image")
    assert [path.name for path in out.iterdir()] == [JOURNAL]
    sixth.write_bytes(pixels)
    damage(first)
    result = evaluate(*options, "--out", out, "--views", "ten")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(f"sppnet: error: {first}: expected a whole image")
    result = evaluate(*options, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()
    }


@pytest.mark.slow
def test_ctrl_c_does_not_change_what_is_measured(model: Path, tmp_path: Path) -> None:
    kinds, out = draw_kinds(tmp_path / "kinds", 15, seed=11), tmp_path / "out"
    views = ("--views", "ten-crop", "--side", "224")
    options = ("--task", "classify", "--model", model, "--data", f"folder:{kinds}", *views)
    done, _ = finish(command("evaluate", *options, "--out", tmp_path / "whole"))
    assert done.returncode == 0, done.stderr

    def rows() -> int:
        return len((out / JOURNAL).read_text().splitlines()) - 1 if (out / JOURNAL).exists() else 0

    code, errors = stop(command("evaluate", *options, "--out", out), signal.SIGINT, lambda: rows() >= 4)
    assert (code, errors[-1]) == (130, "interrupted")
    assert "stopped; the same command continues" in errors
    assert 4 <= rows() < 45
    assert [path.name for path in out.iterdir()] == [JOURNAL]
    done, _ = finish(command("evaluate", *options, "--out", out))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"written: {out / 'scores.json'}, {out / 'metrics.json'}"
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()
    }


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--metric", "top0"], 1, "expected one of the metrics voc07, voc10, top1, top5, ..., got top0"),
        (["--metric", "top1,coco"], 1, "expected one of the metrics voc07, voc10, top1, top5, ..., got coco"),
        (["--views", "nine"], 1, "expected views among full, crop, warp, ten-crop, ten, many, got 'nine'"),
        (["--out", "kinds/red/0.png/out"], 2, "--out: expected a folder that can be written"),
        (["--model", "voc-lite0"], 1, "expected a classifier of format sppnet-classifier-1, got sppnet-1"),
        (["--device", "warp"], 2, "--device: expected one of cpu"),
        (["--data", "folder:nowhere"], 1, "nowhere: expected a folder with one folder of images per class"),
        (["--data", "folder:kinds"], 1, "expected every image in one of the data sets only, got it twice"),
    ],
)
def test_mistakes_are_told_in_one_line(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    draw_kinds(Path("kinds"), 1)
    named = () if "--model" in arguments else ("--model", model)
    result = evaluate(*named, "--data", "folder:kinds", *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    lines = [line for line in result.stderr.splitlines() if line.startswith("sppnet: ")]
    assert len(lines) == 1
    assert lines[0].startswith("sppnet: error: ")
    assert message in lines[0]
    assert "1/3" not in result.stderr  # no image was classified
    assert [path.name for path in tmp_path.iterdir()] == ["kinds"]


def test_accuracy_of_images_that_show_several_is_refused_at_once(toy: Path, several: Path) -> None:
    result = evaluate("--model", several, "--data", f"voc:{toy}:test", "--metric", "top1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "exactly one" in result.stderr.splitlines()[-1]
    assert "classifying" not in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "classify", "--errors"], "--errors: expected it without --task classify, got both"),
        (["--task", "classify", "--iou", "0.7"], "--iou: expected it without --task classify, got both"),
        (["--side", "64"], "--side: expected it without --task detect, got both"),
    ],
)
def test_options_of_the_other_task_are_refused(options: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["evaluate", "--data", "voc:nowhere:test", *options])
    assert result.exit_code == 2
    assert message in result.stderr


def test_the_help_teaches() -> None:
    text = " ".join(CliRunner().invoke(main, ["evaluate", "--help"]).stdout.split())
    for part in ("--task [detect|classify]", "what a classifier says of whole photos", "top1 and top5", "scores.json"):
        assert part in text
