"""Check the paper's form of a detector: machines on a layer, ridge regressors of boxes, and what they learn from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from detector.boxes import decode
from detector.checkpoints import load_detector, save_detector
from detector.cli import main
from detector.cli.train_machines import build, settings_of
from detector.datasets import open_dataset
from detector.machine_training import Examples, fit_machines, fit_regressors, negatives_of
from detector.machines import MachineNet
from detector.mining import MiningRule
from detector.reduced import ReducedCaches
from detector.regression import BoxRegressor, Matches
from detector.structures import GroundTruth
from detector.svm import LinearSVM
from proposals.structures import Proposals
from tests.sources import REPOSITORY
from tests.toy import CLASSES, SETTINGS, SMALL, command, draw, finish, make_caches, small_model


def machine_net(layer: str = "pool5", boxes: str = "ridge") -> MachineNet:
    """Return a detector of toy shapes whose machines and regressors are random."""
    net = build(small_model(), settings_of(SMALL, None, [f"svm_layer={layer}", f"box_regression={boxes}"]))
    generator = torch.Generator().manual_seed(8)
    for part in (net.machines, net.ridge):
        part.weight.copy_(0.02 * torch.randn(part.weight.shape, generator=generator))
        part.bias.copy_(0.1 * torch.randn(part.bias.shape, generator=generator))
    return net


def some_boxes(count: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    corner = 70 * torch.rand(count, 2, generator=generator)
    return torch.cat([corner, corner + 8 + 40 * torch.rand(count, 2, generator=generator)], dim=1)


def photo() -> Tensor:
    return torch.randint(256, (3, 100, 130), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize("layer", ["pool5", "fc6", "fc7"])
@torch.inference_mode()
def test_a_score_is_the_margin_of_the_layer_it_names(layer: str) -> None:
    net, plain = machine_net(layer), small_model()
    pyramid = net.feature_maps(photo())
    pooled, context = plain.pool_regions(plain.extractor(photo()), some_boxes())
    fc6 = (plain.head.fc6(plain.head.norm(pooled).flatten(1)) + context).relu()
    features = {"pool5": pooled.flatten(1), "fc6": fc6, "fc7": plain.head.fc7(fc6).relu()}[layer]
    margins = features @ net.machines.weight.T + net.machines.bias
    scores, deltas = net.score(pyramid, some_boxes())
    torch.testing.assert_close(scores[:, :-1], margins.sigmoid(), rtol=1e-4, atol=1e-5)
    assert bool((scores[:, -1] == 0).all())
    corrections = pooled.flatten(1) @ net.ridge.weight.T + net.ridge.bias
    torch.testing.assert_close(deltas, corrections.view(-1, 3, 4), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_boxes_are_corrected_as_asked() -> None:
    plain = small_model()
    pyramid = plain.feature_maps(photo())
    joint = machine_net("pool5", "joint").score(pyramid, some_boxes())[1]
    torch.testing.assert_close(joint, plain.score(pyramid, some_boxes())[1])
    assert not machine_net("fc6", "none").score(pyramid, some_boxes())[1].any()


def test_regressors_correct_boxes_as_they_do_by_themselves() -> None:
    net = machine_net()
    generator = torch.Generator().manual_seed(3)
    features, boxes = torch.rand(60, net.ridge.in_features, generator=generator), some_boxes(60)
    truth = boxes + 6 * torch.rand(60, 4, generator=generator)
    labels = torch.arange(60) % 3
    regressor = BoxRegressor(3, "spp", min_rows=5).fit(
        0.5 * features, Matches(boxes, truth, labels, torch.full((60,), 0.8))
    )
    net.take_regressors(regressor, 0.5)
    expected = regressor.predict(0.5 * features, boxes)
    torch.testing.assert_close(decode(boxes, net.ridge(features).view(60, 3, 4)), expected, rtol=1e-4, atol=1e-3)


def test_negatives_overlap_no_object_of_their_class() -> None:
    boxes = some_boxes(40)
    truth = GroundTruth(
        some_boxes(5), torch.tensor([0, 0, 2, 2, 1]), torch.tensor([False, True, False, False, False]), (130, 130)
    )
    got = negatives_of(boxes, truth, 4)

    def overlap(a: list[float], b: list[float]) -> float:
        width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        shared = max(width, 0) * max(height, 0)
        area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
        return shared / (area - shared)

    objects = list(zip(truth.boxes.tolist(), truth.labels.tolist(), strict=True))
    for row, box in zip(got.tolist(), boxes.tolist(), strict=True):
        assert row == [all(overlap(box, other) <= 0.3 for other, label in objects if label == k) for k in range(4)]
    assert not bool(got[:, :3].all())


def test_a_detector_takes_what_was_fitted_and_survives_the_disk(tmp_path: Path) -> None:
    toy = draw(tmp_path / "toy", 24)
    dataset = open_dataset(f"voc:{toy}:train", CLASSES)
    net = build(small_model(), settings_of(SMALL, None, ["svm_layer=pool5", "min_score=0.0"]))
    proposals = make_caches(tmp_path / "cache", net).proposals
    examples = Examples(net, dataset.samples, ReducedCaches.of(net, proposals, tmp_path / "cache"))
    seen: list[int] = []
    svm = LinearSVM(C=0.01)
    report = fit_machines(examples, svm, MiningRule(), seen.append)
    assert sum(seen) == 2 * len(dataset)
    assert bool((report.added > 0).all())
    fit_regressors(examples, "spp", seen.append)
    assert sum(seen) == 3 * len(dataset)
    pyramid, boxes = examples.read(dataset[0])
    features = net.features(pyramid, boxes)[0].numpy()
    torch.testing.assert_close(
        net.margins(pyramid, boxes)[0], torch.from_numpy(svm.decision_function(features)), rtol=1e-4, atol=1e-4
    )
    assert bool(net.ridge.weight.any())
    right = total = 0
    for sample in dataset:
        sure = ~sample.truth.difficult
        margins = net.margins(examples.read(sample)[0], sample.truth.boxes[sure].float())[0]
        right += int((margins.argmax(dim=1) == sample.truth.labels[sure]).sum())
        total += int(sure.sum())
    assert right / total > 0.9
    save_detector(net, tmp_path / "svm.safetensors")
    again = load_detector(tmp_path / "svm.safetensors", engine="eager")
    assert isinstance(again, MachineNet)
    proposals = Proposals(examples.read(dataset[0])[1])
    image = photo()
    one, other = net.predict(image, proposals), again.predict(image, proposals)
    torch.testing.assert_close(one.scores[:5], other.scores[:5], rtol=0, atol=2e-3)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    toy = f"voc:{REPOSITORY / 'data' / 'toy'}:train"
    base = run("train", toy, "--out", tmp_path / "a", "--detector", "svm")
    assert (base.exit_code, "--detector svm: expected --start MODEL" in base.stderr) == (2, True)
    for options in (("--preset", "code"), ("--device", "meta")):
        other = run("train", toy, "--out", tmp_path / "a", "--detector", "svm", "--start", "voc-lite0", *options)
        assert other.exit_code == 2
        assert not (tmp_path / "a").exists()
    save_detector(small_model(), tmp_path / "small.safetensors")
    wrong = run(
        "train", toy, "--out", tmp_path / "a", "--detector", "svm", "--start", tmp_path / "small.safetensors",
        "--set", "hidden=64",
    )  # fmt: skip
    assert (wrong.exit_code, "expected settings that fit its layers" in wrong.stderr) == (1, True)
    with pytest.raises(ValueError, match="expected an SPP-net, got R-CNN"):
        settings_of(replace(SMALL, detector="rcnn", region_mean=False), None, ())
    assert settings_of(replace(SMALL, scales=(100, 200)), None, ()).scales == (100, 200)


@pytest.mark.slow
def test_the_command_makes_a_detector_that_finds_shapes(tmp_path: Path) -> None:
    toy = draw(tmp_path / "toy", 60)
    first, second = tmp_path / "joint", tmp_path / "svm"
    done, _ = finish(command("train", f"voc:{toy}:train", "--out", first, "--config", SETTINGS))
    assert done.returncode == 0, done.stderr
    arguments = ("train", f"voc:{toy}:train", "--out", second, "--detector", "svm", "--cache", first / "cache")
    done, _ = finish(command(*arguments, "--start", first / "model.safetensors", "--set", "svm_layer=fc6"))
    assert (done.returncode, done.stdout) == (0, f"{second / 'model.safetensors'}\n"), done.stderr
    done, _ = finish(
        command("evaluate", "--model", second / "model.safetensors", "--data", f"voc:{toy}:test", "--out", second)
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((second / "metrics.json").read_text())["voc07"]["map"] > 0.8
    before = (second / "model.safetensors").read_bytes()
    done, _ = finish(command(*arguments, "--start", first / "model.safetensors", "--set", "svm_layer=fc6"))
    assert "holds the finished run already" in done.stderr
    assert (second / "model.safetensors").read_bytes() == before
