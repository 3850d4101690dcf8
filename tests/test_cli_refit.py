"""Check `sppnet refit` on drawn photos: what changes, what stays bit for bit, what it reports and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor

from detector.checkpoints import load_detector, read_tensors, save_detector
from detector.cli import main
from detector.cli.train_machines import build, settings_of
from detector.datasets import open_dataset
from detector.example_files import ExampleOrigin, load_examples, save_examples
from detector.example_store import ExampleStore
from detector.machine_training import Examples
from detector.mining import Miner, MiningRule
from detector.reduced import ReducedCaches
from detector.svm import LinearSVM
from proposals.registry import make_proposer
from proposals.store import ProposalStore
from tests.toy import CLASSES, SMALL, draw, small_model

LABEL = CLASSES.index("circle")


def draw_background(folder: Path, photos: int, seed: int) -> Path:
    """Draw photos of reddish bars on noise: no circle, but the colour of circles."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    for number in range(photos):
        pixels = generator.integers(90, 160, (180, 240, 3))
        for _ in range(3):
            x, y = generator.integers(0, 150), generator.integers(0, 120)
            bar = pixels[y : y + generator.integers(30, 60), x : x + generator.integers(40, 90)]
            bar[:] = (205, 60, 55) + generator.integers(-12, 13, bar.shape)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a toy set, background to learn from and to check on, and a softmax model."""
    folder = tmp_path_factory.mktemp("refit")
    draw(folder / "toy", 20)
    draw_background(folder / "bars", 6, 1)
    draw_background(folder / "others", 4, 2)
    save_detector(small_model(), folder / "soft.safetensors", {"run": "soft"})
    image = {"id": 1, "file_name": "0.png", "height": 180, "width": 240}
    item = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [20, 20, 50, 50], "area": 2500, "iscrowd": 0}
    squares = {"images": [image], "annotations": [item], "categories": [{"id": 1, "name": "square"}]}
    (folder / "squares.json").write_text(json.dumps(squares))
    return folder


@pytest.fixture(scope="module")
def machines(place: Path) -> Path:
    """Return a detector with machines that know the toy set; what they learned from lies beside it."""
    net = build(small_model(), settings_of(SMALL, None, ["svm_layer=pool5", "box_regression=none"]))
    proposals = ProposalStore(place / "cache" / "proposals", make_proposer(SMALL.proposals))
    samples = open_dataset(f"voc:{place / 'toy'}:train", CLASSES).samples
    net.use_engine("auto")
    examples = Examples(net, samples, ReducedCaches.of(net, proposals, place / "cache" / "maps"))
    svm, rule = LinearSVM(C=0.1), MiningRule()
    store = ExampleStore(len(CLASSES), net.machines.in_features, rule.max_rows)
    for label in range(len(CLASSES)):
        found = [examples.objects(sample) for sample in samples]
        store.add_positives(label, torch.cat([features[labels == label] for features, labels in found]).numpy())
    store.scale = 0.5
    miner = Miner(store, CLASSES, svm, rule)
    miner.mine(examples)
    miner.finish()
    net.take_machines(svm)
    (place / "svm").mkdir()
    save_detector(net, place / "svm" / "model.safetensors", {"run": "machines"})
    origin = ExampleOrigin("machines", CLASSES, svm, rule)
    save_examples(place / "svm" / "examples.safetensors", store, origin)
    return place / "svm" / "model.safetensors"


def refit(place: Path, model: Path | str, out: Path, *more: object) -> Result:
    """Run the command for the class circle; all share a cache."""
    words = [model, "--class", "circle", "--out", out, "--cache", place / "cache", *more]
    return CliRunner().invoke(main, ["refit", *map(str, words)])


def same_but_for(old: Path, new: Path, layer: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Check that two models' files differ in one row of a layer alone, bit for bit; return their tensors."""
    (one, told), (other, told_now) = read_tensors(old), read_tensors(new)
    assert list(one) == list(other)
    rest = [row for row in range(len(one[f"{layer}.bias"])) if row != LABEL]
    for name, values in one.items():
        assert values.dtype == other[name].dtype
        if name in (f"{layer}.weight", f"{layer}.bias"):
            assert values[rest].numpy().tobytes() == other[name][rest].numpy().tobytes()
            assert not torch.equal(values[LABEL], other[name][LABEL])
        else:
            assert values.numpy().tobytes() == other[name].numpy().tobytes()
    assert told.keys() == told_now.keys()
    assert [name for name in told if told[name] != told_now[name]] == ["run"]
    return one, other


def test_a_softmax_model_forgets_false_alarms_and_keeps_other_classes(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "soft.safetensors"
    toy = f"voc:{place / 'toy'}"
    result = refit(
        place, place / "soft.safetensors", out, "--background", place / "bars", "--check", place / "others",
        "--data", f"{toy}:train", "--test", f"{toy}:test", "--score", 0.2, "--hold", 0.001,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    same_but_for(place / "soft.safetensors", out, "head.classes")
    report = json.loads(out.with_suffix(".json").read_text())
    assert report["photos"] == {"background": 6, "boxes": 0, "known": 15, "check": 4, "test": 5}
    assert report["mined"] > 0
    assert report["loss"][1] < report["loss"][0]
    for option in ("background", "check"):
        assert report["false_alarms"][option]["after"] < report["false_alarms"][option]["before"]
    assert report["voc07"]["before"]["per_class"].keys() == set(CLASSES)
    circles = [sample.truth.labels[~sample.truth.difficult] == LABEL for sample in open_dataset(f"{toy}:test", CLASSES)]
    assert report["found"]["objects"] == sum(int(found.sum()) for found in circles)
    assert f"{report['false_alarms']['check']['before']:.3f} before" in result.stdout
    assert {entry.name for entry in out.parent.iterdir()} == {"soft.safetensors", "soft.json"}
    net = load_detector(out)
    values = read_tensors(out)[0]["head.classes.bias"]
    assert torch.equal(net.head.classes.bias.detach(), values.float())


def test_machines_of_other_classes_find_exactly_what_they_found(place: Path, machines: Path, tmp_path: Path) -> None:
    out = tmp_path / "circle.safetensors"
    test = f"voc:{place / 'toy'}:test"
    result = refit(place, machines, out, "--background", place / "bars", "--check", place / "others", "--test", test)
    assert result.exit_code == 0, result.output
    same_but_for(machines, out, "machines")
    report = json.loads(out.with_suffix(".json").read_text())
    alarms = report["false_alarms"]
    assert alarms["background"]["before"] > alarms["background"]["after"]
    assert alarms["check"]["before"] > alarms["check"]["after"]
    before, after = (report["voc07"][side]["per_class"] for side in ("before", "after"))
    assert all(before[name] == after[name] for name in CLASSES if name != "circle")
    assert "AP of all other classes: equal to the last bit" in result.stdout
    assert report["seconds"]["together"] == pytest.approx(
        report["seconds"]["proposals and maps"] + report["seconds"]["mining and fitting"]
    )


def test_the_rows_of_other_classes_stay_in_the_store_and_it_can_be_refitted_again(
    place: Path, machines: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert refit(place, machines, first, "--background", place / "bars").exit_code == 0
    old, new = (
        load_examples(path)[0]
        for path in (machines.with_name("examples.safetensors"), tmp_path / "a.examples.safetensors")
    )
    for label in range(len(CLASSES)):
        rows = [{key.tobytes() for key in s.keys[: s.count][s.signs[: s.count, label] != 0]} for s in (old, new)]
        assert (rows[0] == rows[1]) == (label != LABEL)
    boxed = ("--boxes", f"voc:{place / 'toy'}:test")
    again = CliRunner().invoke(
        main, ["refit", str(first), "--class", "Square", "--out", str(second), *boxed, "--cache", str(place / "cache")]
    )
    assert again.exit_code == 0, again.output
    (one, _), (other, _) = read_tensors(first), read_tensors(second)
    rows = [CLASSES.index(name) for name in ("circle", "triangle")]
    assert one["machines.weight"][rows].numpy().tobytes() == other["machines.weight"][rows].numpy().tobytes()
    report = json.loads(second.with_suffix(".json").read_text())
    squares = [s.truth.labels == CLASSES.index("square") for s in open_dataset(boxed[1], CLASSES).samples]
    assert report["positives"] == sum(int(found.sum()) for found in squares)
    assert report["false_alarms"] == {}
    stale = refit(place, second, tmp_path / "c.safetensors", "--background", place / "bars", "--examples",
                  machines.with_name("examples.safetensors"))  # fmt: skip
    assert (stale.exit_code, "got those of another model" in stale.stderr) == (1, True)


def test_new_boxes_are_learned_by_a_softmax_model(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.safetensors"
    data = ("--data", f"voc:{place / 'toy'}:train", "--boxes", f"voc:{place / 'toy'}:test")
    assert refit(place, place / "soft.safetensors", out, *data).exit_code == 0
    same_but_for(place / "soft.safetensors", out, "head.classes")
    assert json.loads(out.with_suffix(".json").read_text())["positives"] > 0


def test_the_same_command_gives_the_same_model(place: Path, tmp_path: Path) -> None:
    data = ("--data", f"voc:{place / 'toy'}:train", "--background", str(place / "bars" / "*.png"))
    for name in "ab":
        assert refit(place, place / "soft.safetensors", tmp_path / f"{name}.safetensors", *data).exit_code == 0
    (one, told), (other, told_too) = (read_tensors(tmp_path / f"{name}.safetensors") for name in "ab")
    assert told == told_too
    assert all(values.numpy().tobytes() == other[name].numpy().tobytes() for name, values in one.items())


def test_ctrl_c_leaves_no_file(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from detector.cli import refit_one

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(refit_one, "detect_both", stop)
    data = ("--data", f"voc:{place / 'toy'}:train", "--background", place / "bars")
    result = refit(place, place / "soft.safetensors", tmp_path / "new.safetensors", *data)
    assert result.exit_code == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ([], "expected --background or --boxes, the new photos, got neither"),
        (["--background", "{bars}"], "--data: expected the photos that MODEL was trained on"),
        (["--background", "{bars}", "--class", "cat"], "--class: expected one of circle, square, triangle, got cat"),
        (["--background", "{empty}", "--data", "{train}"], "--background: {empty}: expected an image, a folder"),
        (["--background", "{bars}", "--check", "{bars}", "--data", "{train}"], "photos that are not in --background"),
        (["--background", "{bars}", "--score", "0.001"], "--score: expected at least 0.01"),
        (["--background", "{bars}", "--out", "{model}"], "--out: expected another file than MODEL"),
        (["--background", "{bars}", "--out", "{empty}/new.pt"], "expected a name that ends in .safetensors"),
        (["--background", "{bars}", "--score", "nan"], "--score: expected at least 0.01"),
        (["--background", "{bars}", "--hold", "-1"], "--hold"),
        (["--background", "{bars}", "--hold", "nan"], "--hold: expected a number of at least 0, got nan"),
        (["--background", "{bars}", "--data", "{squares}"], "--data: expected an object of the class circle, got none"),
        (["--boxes", "{squares}", "--data", "{train}"], "--boxes: expected an object of the class circle, got none"),
        (["--boxes", "{test}", "--data", "{train}", "--test", "{test}"], "--test: expected photos that are not in"),
        (["--background", "{bars}", "--data", "{train}", "--out", "{report}"], "would be replaced by the report"),
    ],
)
def test_what_does_not_fit_is_refused(place: Path, tmp_path: Path, change: list[str], said: str) -> None:
    model, empty = tmp_path / "soft.safetensors", tmp_path / "empty"
    shutil.copy(place / "soft.safetensors", model)
    empty.mkdir()
    words = {"bars": place / "bars", "empty": empty, "model": model, "report": place / "squares.safetensors"}
    words |= {split: f"voc:{place / 'toy'}:{split}" for split in ("train", "test")}
    words["squares"] = f"coco:{place / 'squares.json'}:{place / 'bars'}"
    given = [word.format(**words) for word in change]
    result = refit(place, model, tmp_path / "new.safetensors", *given)
    assert result.exit_code in (1, 2)
    assert said.format(**words) in result.stderr
    assert {entry.name for entry in tmp_path.iterdir()} == {"soft.safetensors", "empty"}


def test_models_that_cannot_be_refitted_are_refused(place: Path, machines: Path, tmp_path: Path) -> None:
    bars = ("--background", place / "bars")
    crops = CliRunner().invoke(
        main, ["refit", "rcnn-lite0", "--class", "dog", "--out", str(tmp_path / "a.safetensors"), *map(str, bars)]
    )
    assert (crops.exit_code, "expected an SPP-net or machines on its layers, got R-CNN" in crops.stderr) == (1, True)
    alone = tmp_path / "alone.safetensors"
    shutil.copy(machines, alone)
    result = refit(place, alone, tmp_path / "new.safetensors", *bars)
    assert (result.exit_code, "or --examples FILE, got neither" in result.stderr) == (1, True)
    for option, value in (("--hold", "2"), ("--data", f"voc:{place / 'toy'}:train")):
        result = refit(place, machines, tmp_path / "new.safetensors", *bars, option, value)
        assert (result.exit_code, f"{option}: expected a softmax model" in result.stderr) == (2, True)
    kept = machines.with_name("examples.safetensors")
    result = refit(place, place / "soft.safetensors", tmp_path / "new.safetensors", *bars, "--examples", kept)
    assert (result.exit_code, "--examples: expected a model with support vector" in result.stderr) == (2, True)
