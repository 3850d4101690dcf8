"""Check losses, schedule and loop of the training against plain torch, and that a run continues bit by bit."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from detector.batches import Batches, Regions
from detector.boxes import project
from detector.checkpoints import load_detector, read_tensors
from detector.config import Config
from detector.evaluation import evaluate
from detector.images import read_image
from detector.preparation import Caches, prepare
from detector.sppnet import SPPNet
from detector.structures import FeatureMap
from detector.training import Metrics, Run, batch_losses, learning_rate, train
from tests.toy import CLASSES, SMALL, make_caches, small_model, tiny_trunk, toy_samples

K = len(CLASSES)
SHORT = replace(SMALL, epochs=20, average=0.9, dropout=0.5)  # 60 steps


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Caches:
    """Return filled caches of the six toy training images."""
    filled = make_caches(tmp_path_factory.mktemp("caches"), small_model())
    prepare(toy_samples(), filled, 1, lambda _: None)
    return filled


def start(folder: Path, caches: Caches, config: Config = SHORT, seed: int = 5) -> tuple[Run, Batches]:
    run = Run(small_model(config, seed), folder, "toy")
    return run, Batches(toy_samples(), caches, config, K)


def regions(seed: int, labels: list[int]) -> Regions:
    """Return random regions of random maps: 9 x 13 cells of 8 pixels, and 4 x 6 of 16, a little less than that."""
    generator = torch.Generator().manual_seed(seed)
    fine = FeatureMap(1 + 3 * torch.randn(5, 9, 13, generator=generator), 8, 3.5, (1.0, 1.0))
    coarse = FeatureMap(2 * torch.randn(7, 4, 6, generator=generator) - 1, 16, 7.5, (1.0, 1.0))
    corners = torch.rand(len(labels), 2, 2, generator=generator).sort(dim=1).values
    boxes = (corners * torch.tensor([100.0, 70.0])).flatten(1)
    targets = 2 * torch.randn(len(labels), 4, generator=generator)
    return Regions((fine, coarse), boxes, torch.tensor(labels), targets)


def plain_maps(model: SPPNet, maps: tuple[FeatureMap, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Standardise and mix the maps with PyTorch; return the mixed map and a picture of the last, in whole pixels."""
    reduction, standard = model.reduction, []
    for i, m in enumerate(maps):
        mean, deviation = reduction.get_buffer(f"mean{i}"), reduction.get_buffer(f"deviation{i}")
        standard.append((m.values - mean[:, None, None]) / deviation[:, None, None])
    weighed = [
        F.conv2d(values[None], linear.weight[:, :, None, None], linear.bias)
        for values, linear in zip(standard, reduction.linears, strict=True)
    ]
    ys, xs = (((8 * torch.arange(n) + 3.5 - 7.5) / 16 / (m - 1) * 2 - 1) for n, m in ((9, 4), (13, 6)))
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    places = torch.stack([x, y], dim=2)[None]
    aligned = F.grid_sample(weighed[1], places, "bilinear", padding_mode="border", align_corners=True)
    picture = standard[1].repeat_interleave(16, dim=1).repeat_interleave(16, dim=2)
    return (weighed[0] + aligned)[0].relu(), F.pad(picture[None], (0, 8, 0, 8), mode="replicate")[0]


def plain_head(model: SPPNet, pooled: torch.Tensor, mean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Classify one region, (C, bins) and the mean of the last map under it."""
    head = model.head
    deviation, middle = torch.std_mean(pooled, dim=0, correction=0)
    scaled = (pooled - middle) / (deviation**2 + 1e-5).sqrt() * head.norm.weight[:, None] + head.norm.bias[:, None]
    x = (head.fc6.weight @ scaled.T.flatten() + head.fc6.bias + head.context.weight @ mean).relu()
    x = (head.fc7.weight @ x + head.fc7.bias).relu()
    deltas = head.deltas.weight @ x + head.deltas.bias
    return head.classes.weight @ x + head.classes.bias, deltas.view(K, 4)


def plain_losses(model: SPPNet, batch: list[Regions]) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Compute the losses region by region, from their definitions."""
    classes, boxes, right, total = torch.zeros(()), torch.zeros(()), [], sum(len(part.labels) for part in batch)
    for part in batch:
        reduced, picture = plain_maps(model, part.maps)
        windows = project(part.boxes, part.maps[0], model.config.projection).tolist()
        for (x1, y1, x2, y2), label, target in zip(windows, part.labels.tolist(), part.targets, strict=True):
            window, mean = reduced[:, y1:y2, x1:x2], picture[:, 8 * y1 : 8 * y2, 8 * x1 : 8 * x2].mean(dim=(1, 2))
            pooled = torch.cat([F.adaptive_max_pool2d(window, n).flatten(1) for n in model.config.levels], dim=1)
            logits, deltas = plain_head(model, pooled, mean)
            classes = classes + (logits.exp().sum().log() - logits[label]) / total
            if label < K:
                error = (deltas[label] - target).abs()
                boxes = boxes + torch.where(error < 1, error**2 / 2, error - 0.5).sum() / total
                right.append(float(logits.argmax() == label))
    return classes, boxes, sum(right) / len(right) if right else math.nan


@pytest.mark.parametrize("labels", [[[0, 3, 2, 3, 1, 1], [3, 0]], [[3, 3], [3]], [[1], [2, 3]]])
def test_losses_and_gradients_are_those_of_their_definition(labels: list[list[int]]) -> None:
    model = small_model(replace(SMALL, dropout=0.0, cascade=0), trunk=tiny_trunk(2))
    model.reduction.measure(regions(seed, [0]).maps for seed in range(5, 9))
    for layer in (model.head.classes, model.head.deltas):
        torch.nn.init.normal_(layer.weight, std=0.3)
    for name, parameter in model.learned_parameters().items():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=float(name == "head.norm.weight"), std=0.2)
    batch = [regions(seed, part) for seed, part in enumerate(labels)]
    losses = batch_losses(model, batch)
    classes, boxes, right = plain_losses(model, batch)
    torch.testing.assert_close(losses.classes, classes)
    torch.testing.assert_close(losses.boxes, boxes)
    assert losses.right == pytest.approx(right, nan_ok=True)
    parameters = list(model.learned_parameters().values())
    ours = torch.autograd.grad(losses.classes + losses.boxes, parameters)
    theirs = torch.autograd.grad(classes + boxes, parameters, materialize_grads=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 9, 60, 5000])
def test_the_rate_rises_then_falls_as_half_a_cosine(steps: int) -> None:
    rates = [learning_rate(SMALL, step, steps) for step in range(steps)]
    assert all(0 < rate <= SMALL.learning_rate for rate in rates)
    peak = rates.index(max(rates))
    assert peak <= min(200, max(1, steps // 10))
    assert all(a < b for a, b in itertools.pairwise(rates[: peak + 1]))
    assert all(a > b for a, b in itertools.pairwise(rates[peak:]))
    if steps == 5000:
        assert rates[2500] == pytest.approx(SMALL.learning_rate * 0.505, rel=1e-6)
        assert rates[-1] == pytest.approx(SMALL.learning_rate / 100, rel=1e-3)
        assert rates[0] == pytest.approx(SMALL.learning_rate / 200, rel=1e-3)


def test_it_learns_a_handful_of_images_by_heart(tmp_path: Path, caches: Caches) -> None:
    config = replace(SMALL, epochs=60, dropout=0.0, learning_rate=2e-3, average=0.9, channels=16, hidden=64)
    run, batches = start(tmp_path, caches, config)
    seen: list[Metrics] = []
    path = train(run, batches, lambda metrics, _: seen.append(metrics))
    assert seen[-1].loss < 0.3 * seen[0].loss
    assert seen[-1].positives_right > seen[0].positives_right
    net = load_detector(path)
    found = [net.predict(read_image(s.path), caches.proposals.load(s.image_id)) for s in toy_samples()]  # type: ignore[arg-type]
    assert evaluate(found, [s.truth for s in toy_samples()], CLASSES, ["voc10"])["voc10"].map > 0.95


def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path: Path, caches: Caches) -> None:
    """Stop a run after 20 and 40 of its 60 steps, with its state on disk, and go on with another model object."""
    whole, batches = start(tmp_path / "whole", caches)
    parts: list[float] = []
    train(whole, batches, lambda _, part: parts.append(part))
    assert parts == pytest.approx([1 / 3, 2 / 3, 1])

    for seed in (5, 6, 7):  # where a run goes on, what the layers were initialised with must not count
        run, batches = start(tmp_path / "stopped", caches, seed=seed)

        def report(metrics: Metrics, part: float, run: Run = run) -> None:
            if part < 1:
                run.save_state()
                raise KeyboardInterrupt

        if seed < 7:
            with pytest.raises(KeyboardInterrupt):
                train(run, batches, report)
            assert not (tmp_path / "stopped" / "model.safetensors").exists()
        else:
            train(run, batches, report)
    (ours, data), (theirs, other) = (read_tensors(tmp_path / n / "model.safetensors") for n in ("stopped", "whole"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert data == other
    assert (tmp_path / "stopped/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert not (tmp_path / "stopped" / "state.safetensors").exists()


@pytest.mark.parametrize(("save_every", "step"), [(0.0, "20"), (1e9, None)])
def test_the_state_is_written_as_often_as_asked(
    tmp_path: Path, caches: Caches, save_every: float, step: str | None
) -> None:
    run, batches = start(tmp_path, caches)

    state = tmp_path / "state.safetensors"

    def report(metrics: Metrics, _: float) -> None:
        if metrics.step == 40:
            assert (read_tensors(state)[1]["step"] if state.exists() else None) == step
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, batches, report, save_every)
    assert read_tensors(state)[1]["step"] == "40"  # Ctrl-C loses nothing


def test_biases_and_norms_do_not_decay(tmp_path: Path) -> None:
    """Take a step without gradients: decay is all that is left of it."""
    run = Run(small_model(SHORT, trunk=tiny_trunk()), tmp_path, "toy")
    before = {name: p.detach().clone() for name, p in run.parameters.items()}
    for parameter in run.parameters.values():
        torch.nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    run.optimizer.step()
    assert {p.ndim for p in before.values()} == {1, 2}
    for name, parameter in run.parameters.items():
        decay = SHORT.learning_rate * SHORT.weight_decay if before[name].ndim == 2 else 0
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, 1 - decay), rtol=0, atol=1e-7)


def test_statistics_are_measured_before_the_first_step_and_kept(tmp_path: Path, caches: Caches) -> None:
    run, batches = start(tmp_path, caches, replace(SHORT, epochs=1))
    tensors = read_tensors(train(run, batches, lambda *_: None))[0]
    cells = [caches.features.load(s.image_id)[0].values.float().flatten(1) for s in toy_samples()]  # type: ignore[index]
    deviation, mean = torch.std_mean(torch.cat(cells, dim=1), dim=1, correction=0)
    torch.testing.assert_close(tensors["reduction.mean0"].float(), mean, rtol=2e-3, atol=1e-3)
    expected = deviation.clamp(min=float(deviation.mean()) / 10)
    torch.testing.assert_close(tensors["reduction.deviation0"].float(), expected, rtol=2e-3, atol=1e-3)


def test_a_folder_keeps_its_run(tmp_path: Path, caches: Caches) -> None:
    run, batches = start(tmp_path, caches)
    train(run, batches, lambda *_: None)
    content = (tmp_path / "model.safetensors").read_bytes()
    again, batches = start(tmp_path, caches, seed=9)
    called: list[float] = []
    assert train(again, batches, lambda _, part: called.append(part)) == tmp_path / "model.safetensors"
    assert called == []
    assert (tmp_path / "model.safetensors").read_bytes() == content
    run.save_state()
    other, batches = start(tmp_path, caches, replace(SHORT, seed=1))
    with pytest.raises(ValueError, match=r"expected an empty folder or the same run"):
        train(other, batches, lambda *_: None)


def test_the_metrics_are_on_disk(tmp_path: Path, caches: Caches) -> None:
    run, batches = start(tmp_path, caches)
    train(run, batches, lambda *_: None)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [20, 40, 60]
    assert rows[-1]["epoch"] == 20
    for row in rows:
        assert row["loss"] == pytest.approx(row["class_loss"] + SHORT.box_weight * row["box_loss"])
        assert 0 <= row["positives_right"] <= 1
        assert row["learning_rate"] == learning_rate(SHORT, row["step"] - 1, 60)


def test_what_is_kept_is_the_running_average(tmp_path: Path, caches: Caches) -> None:
    """Follow the weights step by step and average them as the settings say; 0 keeps the last ones."""
    for average in (0.9, 0.0):
        run, batches = start(tmp_path / str(average), caches, replace(SHORT, epochs=1, average=average))
        expected = {name: p.detach().clone() for name, p in run.parameters.items()}
        seen: list[int] = []

        def follow(
            *_: object, run: Run = run, expected: dict = expected, seen: list[int] = seen, a: float = average
        ) -> None:
            step = len(seen) + 1
            seen.append(step)
            decay = min(a, step / (step + 9))
            for name, parameter in run.parameters.items():
                expected[name] = decay * expected[name] + (1 - decay) * parameter.detach()

        run.optimizer.register_step_post_hook(follow)
        tensors = read_tensors(train(run, batches, lambda *_: None))[0]
        assert len(seen) == 3
        for name, value in expected.items():
            torch.testing.assert_close(tensors[name].float(), value, rtol=2e-3, atol=1e-6)  # stored as float16


def test_a_batch_without_any_region_teaches_nothing() -> None:
    """Take photos of which no proposal can be learned from: losses of 0, gradients of 0, no NaN."""
    model = small_model(trunk=tiny_trunk()).train()
    maps = model.extractor(torch.zeros(3, 64, 96, dtype=torch.uint8))
    none = Regions(maps, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    losses = batch_losses(model, [none, none])
    assert [float(part.detach()) for part in (losses.classes, losses.boxes, losses.coarse)] == [0, 0, 0]
    (losses.classes + losses.boxes + losses.coarse).backward()
    assert all(p.grad is None or not p.grad.any() for p in model.learned_parameters().values())
