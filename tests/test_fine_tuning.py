"""Check what a run by a preset does with the layers, step by step, and that it continues bit by bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detector.batches import PooledBatches
from detector.checkpoints import read_tensors
from detector.config import Config
from detector.optimizers import learning_rate
from detector.training import Metrics, Run, train
from tests.noise import reduced, settings
from tests.test_pooled_batches import Source, net_of
from tests.toy import small_model, tiny_trunk

CODE = settings("code", "epochs=60", "cascade=10")  # 60 steps, with a small classifier that learns, too


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return reduced(tmp_path_factory.mktemp("noise"), CODE)


def start(folder: Path, source: Source, config: Config = CODE) -> tuple[Run, PooledBatches]:
    net = net_of(config)
    return Run(net, folder, "noise", fresh=False), PooledBatches(*source, net)


@pytest.mark.parametrize(
    ("name", "steps", "rates"),
    [("paper", 12, [1e-4] * 10 + [1e-5] * 2), ("code", 9, [1e-3] * 3 + [1e-4] * 3 + [1e-5] * 3)],
)
def test_a_run_by_a_preset_steps_as_its_source_says(
    tmp_path: Path, source: Source, name: str, steps: int, rates: list[float]
) -> None:
    """Watch the optimiser: rates fall at the source's parts of a run; biases have twice the rate and no decay."""
    run, batches = start(tmp_path, source, settings(name, f"epochs={steps}"))
    seen: list[list[tuple[float, float, float]]] = []

    def watch(optimizer: torch.optim.Optimizer, *_: object) -> None:
        seen.append([(g["lr"], g["momentum"], g["weight_decay"]) for g in optimizer.param_groups])

    run.optimizer.register_step_pre_hook(watch)
    told: list[Metrics] = []
    train(run, batches, lambda metrics, _: told.append(metrics))
    assert len(seen) == len(rates) == steps
    for groups, rate in zip(seen, rates, strict=True):
        expected = [(rate, 0.9, 0.0005), (2 * rate, 0.9, 0.0)]
        assert [value for group in groups for value in group] == pytest.approx([v for g in expected for v in g])
    assert told[-1].learning_rate == pytest.approx(rates[-1])


def test_only_fully_connected_layers_change(tmp_path: Path, source: Source) -> None:
    """Compare every value of the finished file, float16, with what the run began with."""
    config = settings("code", "epochs=40", "learning_rate=0.05")
    run, batches = start(tmp_path, source, config)
    state = net_of(config).learned_state()
    before = {name: value.detach().half() for name, value in state.items()}
    after = read_tensors(train(run, batches, lambda *_: None))[0]
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    learned = {f"head.{layer}.{part}" for layer in ("fc6", "fc7", "classes") for part in ("weight", "bias")}
    # boxes teach nothing (box_weight 0); their weights decay
    assert changed == {*learned, "head.deltas.weight"}
    ratio = after["head.deltas.weight"].float() / before["head.deltas.weight"].float()
    assert float(ratio.min()) > 0.9
    assert float(ratio.median()) < 1


def test_all_layers_learn_unless_told(tmp_path: Path) -> None:
    names = small_model(replace(CODE, learn="all"), trunk=tiny_trunk(2)).learned_parameters().keys()
    fc = small_model(CODE, trunk=tiny_trunk(2)).learned_parameters().keys()
    assert {n.split(".")[0] for n in names - fc} == {"reduction", "head"}
    assert names - fc == {n for n in names if n.startswith(("reduction.", "head.norm."))}


def test_a_fine_tuning_that_was_stopped_ends_with_the_same_weights(tmp_path: Path, source: Source) -> None:
    """Stop a run by Ctrl-C after 20 of its 60 steps, kill it after 40, where the state of 20 is on disk, and go on."""
    whole, batches = start(tmp_path / "whole", source)
    train(whole, batches, lambda *_: None)

    class KilledError(Exception):
        pass

    for error, steps in ((KeyboardInterrupt, 20), (KilledError, 40), (None, 60)):
        run, batches = start(tmp_path / "stopped", source)
        seen: list[int] = []

        def report(
            metrics: Metrics, _: float, error: type[BaseException] | None = error, steps: int = steps, seen: list = seen
        ) -> None:
            seen.append(metrics.step)
            if error and metrics.step == steps:
                raise error

        if error:
            with pytest.raises(error):
                train(run, batches, report, 1e9)
            assert read_tensors(tmp_path / "stopped/state.safetensors")[1]["step"] == "20"
            assert seen[-1] == steps
        else:
            train(run, batches, report)
            assert seen == [40, 60]
    (ours, data), (theirs, other) = (read_tensors(tmp_path / n / "model.safetensors") for n in ("stopped", "whole"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert data == other
    assert (tmp_path / "stopped/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


@pytest.mark.parametrize(("save_every", "step"), [(0.0, "20"), (1e9, None)])
def test_the_state_is_written_as_often_as_asked(
    tmp_path: Path, source: Source, save_every: float, step: str | None
) -> None:
    run, batches = start(tmp_path, source)
    state = tmp_path / "state.safetensors"

    def report(metrics: Metrics, _: float) -> None:
        if metrics.step == 40:
            assert (read_tensors(state)[1]["step"] if state.exists() else None) == step
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, batches, report, save_every)
    tensors, metadata = read_tensors(state)
    assert metadata["step"] == "40"  # Ctrl-C loses nothing
    kinds = {name.split(".")[0] for name in tensors}
    assert kinds == {"weight", "average", "momentum"}
    moved = [tensors[f"momentum.{name}"] for name in run.parameters if "deltas" not in name]
    assert all(bool(value.any()) for value in moved)


def test_a_state_of_another_optimiser_is_refused(tmp_path: Path, source: Source) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    run, batches = start(tmp_path, source)
    with pytest.raises(KeyboardInterrupt):
        train(run, batches, stop)
    for change in (
        {"optimizer": "adamw"},
        {"learn": "all"},
        {"random_scale": False},
        {"rate_drops": (0.5,)},
    ):
        other, batches = start(tmp_path, source, replace(CODE, **change))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"expected an empty folder or the same run, got a run of other settings"):
            train(other, batches, lambda *_: None)
    again, _ = start(tmp_path, source)
    again.continue_from_disk()
    assert again.step == 20


def test_statistics_are_measured_for_layers_that_know_nothing_alone(tmp_path: Path, source: Source) -> None:
    """Begin with layers of another detector: their means and deviations stay."""
    config = replace(CODE, epochs=1)
    after = {}
    for fresh in (False, True):
        net = net_of(replace(config, scales=()))
        run = Run(net, tmp_path / str(fresh), "noise", fresh)
        batches = PooledBatches(*source, net)
        maps = [net.extractor(torch.zeros(3, 64, 96, dtype=torch.uint8))] * 2
        batches.first_maps = lambda count, maps=maps: iter(maps)  # type: ignore[method-assign, assignment, misc]
        after[fresh] = read_tensors(train(run, batches, lambda *_: None))[0]["reduction.mean1"]
    assert not after[False].any()
    assert bool(after[True].any())


def test_rates_of_metrics_are_those_of_the_last_step(tmp_path: Path, source: Source) -> None:
    run, batches = start(tmp_path, source)
    told: list[Metrics] = []
    train(run, batches, lambda metrics, _: told.append(metrics))
    assert [m.learning_rate for m in told] == [learning_rate(CODE, step, 60) for step in (19, 39, 59)]
    assert [m.learning_rate for m in told] == pytest.approx([1e-3, 1e-4, 1e-5])
