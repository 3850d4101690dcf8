"""Check `sppnet evaluate`: its files, its numbers against the API and pycocotools, and that it continues if stopped."""

from __future__ import annotations

import contextlib
import io
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.checkpoints import load_detector, save_detector
from detector.cli import main
from detector.datasets import Dataset, open_datasets
from detector.evaluation import evaluate as measure
from detector.images import read_image
from detector.sppnet import SPPNet
from proposals.registry import make_proposer
from tests.toy import CLASSES, SMALL, command, draw, finish, small_model, stop


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a small detector with random learned layers."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_detector(small_model(), path)
    return path


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two toy sets of the same folder name: a/toy and b/toy, 2 test images each."""
    folder = tmp_path_factory.mktemp("data")
    draw(folder / "a" / "toy", 8, seed=1)
    draw(folder / "b" / "toy", 8, seed=2)
    return folder


def evaluate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments), "--threads", "1"])


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def coco_ap(dataset: Dataset, results: list[dict[str, Any]]) -> float:
    """Return COCO's AP as pycocotools computes it from the results file and the annotations."""
    truth = COCO()
    ids = {sample.image_id: number for number, sample in enumerate(dataset)}
    rows = [
        (ids[s.image_id], label + 1, box)
        for s in dataset
        for label, box in zip(s.truth.labels.tolist(), s.truth.boxes.tolist(), strict=True)
    ]
    truth.dataset = {
        "images": [{"id": number} for number in ids.values()],
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
            }
            for number, (image, category, (x1, y1, x2, y2)) in enumerate(rows, start=1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = truth.loadRes([{**row, "image_id": ids[row["image_id"]]} for row in results])
        judge = COCOeval(truth, found, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return float(judge.stats[0])


def test_several_sets_and_metrics(toy: Path, model: Path, tmp_path: Path) -> None:
    """Compare both files with what the API finds and with pycocotools on the results file."""
    specs = [f"voc:{toy / part / 'toy'}:test" for part in ("a", "b")]
    data = [argument for spec in specs for argument in ("--data", spec)]
    out = tmp_path / "new" / "out"
    result = evaluate("--model", model, *data, "--metric", "voc07, coco,voc10,coco", "--out", out)
    assert result.exit_code == 0, result.stderr
    names = {path.name for path in out.iterdir()}
    assert {"detections.json", "metrics.json", "report.html", "ap.png", "curves.png"} <= names
    assert names <= {"detections.json", "metrics.json", "report.html", "ap.png", "curves.png", "confusion.png"}
    dataset, net, proposer = open_datasets(specs, CLASSES), load_detector(model), make_proposer("fast")
    found = [net.predict(image, proposer(image)) for image in (read_image(s.path) for s in dataset)]
    results, metrics = read(out / "detections.json"), read(out / "metrics.json")
    assert results == [row for s, d in zip(dataset, found, strict=True) for row in d.to_coco(s.image_id)]
    assert len({row["image_id"] for row in results}) == 4
    assert all(set(row) == {"image_id", "category_id", "bbox", "score"} for row in results)
    assert all(
        row["category_id"] in (1, 2, 3) and len(row["bbox"]) == 4 and min(row["bbox"][2:]) > 0 for row in results
    )
    expected = measure(found, dataset.truths, CLASSES, ["voc07", "coco", "voc10"])
    assert list(metrics) == ["voc07", "coco", "voc10"]
    for metric, values in metrics.items():
        assert values["map"] == expected[metric].map
        assert values["per_class"] == expected[metric].per_class
        assert tuple(values["per_class"]) == CLASSES
    assert metrics["coco"]["map"] == pytest.approx(coco_ap(dataset, results), abs=1e-9)
    low, high = metrics["voc07"]["interval"]
    assert 0 <= low <= metrics["voc07"]["map"] <= high <= 1
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["class", "voc07", "coco", "voc10"]
    assert [line.split()[0] for line in lines[2:5]] == list(CLASSES)
    assert f"{100 * metrics['voc07']['map']:.2f}" in next(line for line in lines if line.startswith("mean"))
    assert "4 images, " in result.stderr


def test_results_of_one_coco_file_have_its_ids(tmp_path: Path) -> None:
    """Load detections.json with pycocotools on the original file; its first number is that of metrics.json."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        save_detector(SPPNet(SMALL, ("Square", "tvmonitor")), tmp_path / "m.safetensors")
    photos = {139: "000000.jpg", 7: "000001.jpg"}
    folder = draw(tmp_path / "toy", 4) / "JPEGImages"
    net, proposer = load_detector(tmp_path / "m.safetensors"), make_proposer("fast")
    objects = []
    for number, name in photos.items():  # objects where the detector finds some, so that the precision is not 0
        image = read_image(folder / name)
        found = net.predict(image, proposer(image))
        for label, category in enumerate((90, 3)):
            x1, y1, x2, y2 = found.boxes[found.labels == label][1].tolist()
            box = [int(x1), int(y1), int(0.9 * (x2 - x1)), int(y2 - y1)]  # float32 holds whole numbers exactly
            objects.append({"image_id": number, "category_id": category, "bbox": box, "area": box[2] * box[3]})
    tables = {
        "info": {},
        "images": [{"id": number, "file_name": name} for number, name in photos.items()],
        "categories": [{"id": 3, "name": "TV"}, {"id": 44, "name": "bottle"}, {"id": 90, "name": "square"}],
        "annotations": [{**row, "id": number, "iscrowd": 0} for number, row in enumerate(objects, start=1)],
    }
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(tables))
    data, out = f"coco:{file}:{folder}", tmp_path / "out"
    result = evaluate("--model", tmp_path / "m.safetensors", "--data", data, "--metric", "coco", "--out", out)
    assert result.exit_code == 0, result.stderr
    rows = read(out / "detections.json")
    assert {row["image_id"] for row in rows} == {139, 7}
    assert {row["category_id"] for row in rows} == {3, 90}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        judge = COCOeval(truth, truth.loadRes(str(out / "detections.json")), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    assert 0 < judge.stats[0] < 1
    assert read(out / "metrics.json")["coco"]["map"] == pytest.approx(judge.stats[0], abs=1e-9)


def test_without_out_it_prints_only(toy: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--model", model, "--data", f"voc:{toy / 'a' / 'toy'}:test", "--proposals", "fast", "--no-interval"]
    result = evaluate(*options)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[0].split() == ["class", "voc07"]
    assert "interval" not in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_classes_go_by_name(toy: Path, tmp_path: Path) -> None:
    """Take a model of other classes, in another order: what it does not have is ignored."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        save_detector(SPPNet(SMALL, ("zebra", "Square")), tmp_path / "m.safetensors")
    data = f"voc:{toy / 'a' / 'toy'}:train"
    result = evaluate("--model", tmp_path / "m.safetensors", "--data", data, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    ignored = sum(label != 1 for t in open_datasets([data], CLASSES).truths for label in t.labels.tolist())
    assert f"({ignored} of other classes are ignored)" in result.stderr
    values = read(tmp_path / "out" / "metrics.json")["voc07"]
    assert values["per_class"]["zebra"] is None
    assert values["map"] == values["per_class"]["Square"]


def test_a_cache_changes_nothing_and_belongs_to_its_photos(toy: Path, model: Path, tmp_path: Path) -> None:
    data = ["--data", f"voc:{toy / 'a' / 'toy'}:test"]
    options = ["--model", model, "--cache", tmp_path / "cache"]
    contents = []
    for name in ("first", "second"):
        assert evaluate(*options, *data, "--out", tmp_path / name).exit_code == 0
        contents.append((tmp_path / name / "detections.json").read_bytes())
    assert evaluate("--model", model, *data, "--out", tmp_path / "third").exit_code == 0
    assert len({*contents, (tmp_path / "third" / "detections.json").read_bytes()}) == 1
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 2
    result = evaluate(*options, "--data", f"voc:{toy / 'b' / 'toy'}:test", "--out", tmp_path / "fourth")
    assert result.exit_code == 1
    assert "got that of another toy_00000" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "fourth").exists()


@pytest.mark.slow
def test_a_stopped_evaluation_continues_with_the_same_result(model: Path, tmp_path: Path) -> None:
    """Stop it with Ctrl-C, then with SIGKILL; spoil the photos it has done: they are not looked at again."""
    root = draw(tmp_path / "toy", 30)
    options = ["--model", model, "--data", f"voc:{root}:train", "--metric", "voc07,coco"]
    done, _ = finish(command("evaluate", *options, "--out", tmp_path / "whole"))
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"

    def lines() -> list[str]:
        path = out / "unfinished.jsonl"
        return path.read_text().splitlines() if path.exists() else []

    code, errors = stop(command("evaluate", *options, "--out", out), signal.SIGINT, lambda: len(lines()) > 3)
    assert (code, errors[-1]) == (130, "interrupted")
    assert "stopped; the same command continues" in errors
    first = len(lines())
    code, _ = stop(command("evaluate", *options, "--out", out), signal.SIGKILL, lambda: len(lines()) > first + 2)
    assert code == -signal.SIGKILL
    paths = [json.loads(line)[0] for line in lines()[1:-1]]
    assert first < len(paths) + 2 < 22
    for path in paths:
        Path(path).write_bytes(Path(path).read_bytes()[:-200])  # its size can still be read, its pixels cannot
    assert [entry.name for entry in out.iterdir()] == ["unfinished.jsonl"]
    with (out / "unfinished.jsonl").open("a") as file:
        file.write('["half a line')
    done, _ = finish(command("evaluate", *options, "--out", out))
    assert done.returncode == 0, done.stderr
    assert {entry.name for entry in out.iterdir()} == {entry.name for entry in (tmp_path / "whole").iterdir()}
    for name in ("detections.json", "metrics.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--metric", "voc12"], 1, "expected metrics among voc07, voc10, coco, got 'voc12'"),
        (["--metric", "voc07,"], 1, "expected metrics among voc07, voc10, coco, got ''"),
        (["--device", "warp"], 2, "--device: expected one of cpu"),
        (["--model", "none.safetensors"], 1, "none.safetensors: expected a safetensors file, got nothing there"),
        (["--model", "nobody"], 1, "expected a model among"),
        (["--model", "file"], 1, "file: expected a whole safetensors file"),
        (["--proposals", "dowsing"], 1, "expected a proposer named single, fast"),
        (["--data", "voc:toy:val"], 1, "val.txt: expected the list of a split's images"),
        (["--data", "toy"], 1, "toy: expected voc:ROOT:SPLIT or coco:JSON:IMAGES"),
        (
            ["--data", "voc:toy:cats"],
            1,
            "voc:toy:cats: expected objects of the classes circle, square, triangle, got only cat",
        ),
        (["--data", "voc:toy:none"], 1, "voc:toy:none: expected at least one annotated object, got none"),
        (["--out", "file"], 2, "Directory 'file' is a file"),
        (["--out", "file/out"], 2, "--out: expected a folder that can be written, got file/out"),
        (["--cache", "file/out"], 2, "--cache: expected a folder that can be written, got file/out"),
        (["--threads", "0"], 2, "Invalid value for '--threads'"),
    ],
)
def test_mistakes_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    draw(Path("toy"), 4)
    for name, text in (("cats", "<object><name>cat</name><bndbox>{}</bndbox></object>"), ("none", "")):
        box = "".join(f"<{key}>{value}</{key}>" for key, value in (("xmin", 1), ("ymin", 1), ("xmax", 9), ("ymax", 9)))
        Path(f"toy/Annotations/{name}.xml").write_text(f"<annotation>{text.format(box)}</annotation>")
        Path(f"toy/JPEGImages/{name}.jpg").write_bytes(Path("toy/JPEGImages/000000.jpg").read_bytes())
        Path(f"toy/ImageSets/Main/{name}.txt").write_text(f"{name}\n")
    Path("file").write_text("no model")
    before = sorted(tmp_path.rglob("*"))
    usual = {"--model": str(model), "--data": "voc:toy:test", "--out": "out"}
    options = [part for option, value in usual.items() if option not in arguments for part in (option, value)]
    result = CliRunner().invoke(main, ["evaluate", *options, *arguments])
    assert result.exit_code == code, result.stderr
    lines = [line for line in result.stderr.splitlines() if not line.startswith("compiling")]
    assert len(lines) == 1
    assert lines[0].startswith("sppnet: error: ")
    assert message in lines[0]
    assert result.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_photo_is_named(tmp_path: Path, model: Path) -> None:
    root = draw(tmp_path / "toy", 8)
    photo = root / "JPEGImages" / "000005.jpg"
    photo.write_bytes(photo.read_bytes()[:-200])
    result = evaluate("--model", model, "--data", f"voc:{root}:test", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "000005.jpg: expected a whole image" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out" / "metrics.json").exists()
