"""Check that the training of machines may stop at any image and ends with the same bits, and what it leaves."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from detector.checkpoints import read_tensors, save_tensors
from detector.cli import main
from detector.cli.train_machines import build, settings_of
from detector.datasets import open_dataset
from detector.example_files import load_examples
from detector.machine_training import NORM, Examples, MachineRun
from detector.mining import MiningReport, MiningRule, mine, scale_features
from detector.preparation import prepare
from detector.reduced import ReducedCaches
from detector.svm import LinearSVM
from tests.toy import CLASSES, SETTINGS, SMALL, command, draw, finish, make_caches, small_model, stop

# trained in the middle of the pass as well
RULE = MiningRule(retrain_limit=30)


class KilledError(Exception):
    """Stand for a process that ends without doing anything more."""


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    folder = tmp_path_factory.mktemp("machines")
    dataset = open_dataset(f"voc:{draw(folder / 'toy', 16)}:train", CLASSES)
    net = build(small_model(), settings_of(SMALL, None, ["svm_layer=pool5"]))
    caches = ReducedCaches.of(net, make_caches(folder / "cache", net).proposals, folder / "cache" / "maps")
    prepare(dataset.samples, caches, 1, lambda count: None)
    return Examples(net, dataset.samples, caches)


def fresh(examples: Examples, folder: Path | None, save_every: float = 1e9, key: str = "key") -> MachineRun:
    """Return a run as a new process has it, with a detector that has learned nothing."""
    net = build(small_model(), settings_of(SMALL, None, ["svm_layer=pool5"]))
    other = Examples(net, examples.samples, examples.caches)
    run = MachineRun(other, LinearSVM(C=0.1), RULE, folder, key, save_every)
    run.continue_from_disk()
    return run


def results(run: MachineRun) -> list[bytes]:
    values = [run.svm.coef_, run.svm.intercept_, run.net.machines.weight.numpy(), run.net.machines.bias.numpy()]
    return [value.tobytes() for value in values]


def stopped(run: MachineRun, images: int, error: type[BaseException]) -> None:
    """Let a run visit some images, and end with an error after the last."""
    seen = 0

    def watch(count: int) -> None:
        nonlocal seen
        seen += count
        if seen >= images:
            raise error

    with pytest.raises(error):
        run.fit(watch)


def counts(report: MiningReport | None) -> list[object]:
    assert report is not None
    arrays = (report.added, report.evicted, report.kept, report.trainings)
    return [*(array.tolist() for array in arrays), report.crowded, report.epochs]


def test_a_run_is_what_mining_all_positives_is(examples: Examples) -> None:
    """Compare bit for bit with positives collected by hand, class after class."""
    run = fresh(examples, None)
    report = run.fit(lambda count: None)
    positives = {}
    for label, name in enumerate(CLASSES):
        parts = [features[labels == label] for features, labels in map(examples.objects, examples.samples)]
        positives[name] = torch.cat(parts).numpy()
    svm = LinearSVM(C=0.1)
    scale = scale_features((image.features for image in examples), NORM)
    expected = mine(examples, positives, svm, RULE, scale)
    assert (run.svm.coef_.tobytes(), run.svm.intercept_.tobytes()) == (svm.coef_.tobytes(), svm.intercept_.tobytes())
    assert counts(report) == counts(expected)
    assert max(expected.trainings) > 2


def test_whenever_a_run_stops_it_ends_with_the_same_bits(examples: Examples, tmp_path: Path) -> None:
    """Stop by Ctrl-C, and as SIGKILL does, after every number of images in both stages."""
    whole = fresh(examples, None)
    report = whole.fit(lambda count: None)
    images = len(examples.samples)
    for number in (1, images // 2, images - 1, images, images + 1, images + 5, 2 * images):
        folder = tmp_path / str(number)
        stopped(fresh(examples, folder), number, KeyboardInterrupt)
        killed = fresh(examples, folder, save_every=0)
        assert killed.step == number == int(read_tensors(folder / "state.safetensors")[1]["step"])
        left = 2 * images - number
        if left > 2:
            stopped(killed, 2, KilledError)  # after which the state is that of the first image
            assert fresh(examples, folder).step == number + 1
            left -= 1
        seen: list[int] = []
        last = fresh(examples, folder)
        assert counts(last.fit(seen.append)) == counts(report)
        assert sum(seen) == left
        assert results(last) == results(whole)


def test_a_run_leaves_what_its_machines_learned_from(examples: Examples, tmp_path: Path) -> None:
    run = fresh(examples, tmp_path)
    report = run.fit(lambda count: None)
    assert report is not None
    store, origin = load_examples(tmp_path / "examples.safetensors")
    assert (origin.run, origin.class_names, origin.rule) == ("key", CLASSES, RULE)
    assert origin.svm.get_params() == run.svm.get_params()
    assert store.scale == run.svm.scale_
    assert (store.signs < 0).sum(axis=0).tolist() == report.kept.tolist()
    objects = [examples.objects(sample)[1] for sample in examples.samples]
    assert (store.signs > 0).sum(axis=0).tolist() == torch.cat(objects).bincount(minlength=3).tolist()
    for row, (image, region) in enumerate(store.keys.tolist()):
        if image >= 0:
            given = examples.regions(examples.samples[image])
            assert given.negatives[region][store.signs[row] < 0].all()
            np.testing.assert_array_equal(store.features[row], given.features[region])
    # training again from there ends at once
    found = run.svm.solve(store.features, store.signs, store.alpha, store.scale)
    assert (found.objective <= run.svm.objective_ * (1 + run.svm.tol)).all()


def test_finished_machines_are_not_trained_again(examples: Examples, tmp_path: Path) -> None:
    run = fresh(examples, tmp_path)
    stopped(run, 2 * len(examples.samples), KeyboardInterrupt)
    stopped(fresh(examples, tmp_path), 0, KeyboardInterrupt)  # while the last machines were trained
    assert read_tensors(tmp_path / "state.safetensors")[1]["stage"] == "done"
    again = fresh(examples, tmp_path)
    assert (again.done, again.step) == (True, 2 * len(examples.samples))
    assert again.fit(lambda count: pytest.fail("expected no image to be visited")) is None
    whole = fresh(examples, None)
    whole.fit(lambda count: None)
    assert results(again) == results(whole)


def test_the_state_of_another_run_and_a_damaged_one_are_refused(examples: Examples, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    stopped(fresh(examples, tmp_path), len(examples.samples) + 2, KeyboardInterrupt)
    with pytest.raises(ValueError, match=f"^{path}: expected an empty folder or the same run, got a run of other"):
        fresh(examples, tmp_path, key="other")
    tensors, metadata = read_tensors(path)
    kept = {name: value.clone() for name, value in tensors.items()}
    for name in ("coef", "signs", "numbers.run"):
        save_tensors({key: value for key, value in kept.items() if key != name}, path, metadata)
        with pytest.raises(
            ValueError, match=f"^{path}: expected the state of a run, got one that does not fit .*{name}"
        ):
            fresh(examples, tmp_path)
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=f"^{path}: expected a whole safetensors file"):
        fresh(examples, tmp_path)


@pytest.mark.slow
def test_however_the_command_is_stopped_it_ends_with_the_same_detector(tmp_path: Path) -> None:
    """SIGKILL while the machines are mined, and Ctrl-C; then refuse another run in the folder."""
    toy = draw(tmp_path / "toy", 32)
    joint, whole, run = (tmp_path / name for name in ("joint", "whole", "run"))
    few = ("--config", SETTINGS, "--set", "epochs=1")
    done, _ = finish(command("train", f"voc:{toy}:train", "--out", joint, *few))
    assert done.returncode == 0, done.stderr
    own = ("--detector", "svm", "--start", joint / "model.safetensors", "--cache", joint / "cache")
    done, _ = finish(command("train", f"voc:{toy}:train", "--out", whole, *own))
    assert done.returncode == 0, done.stderr
    arguments = command("train", f"voc:{toy}:train", "--out", run, *own, "--save-every", "0")
    state, steps = run / "state.safetensors", 0
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):

        def reached(least: int = steps + 12) -> bool:
            return state.exists() and int(read_tensors(state)[1]["step"]) >= least

        got, errors = stop(arguments, number, reached)
        assert got == code, errors
        steps = int(read_tensors(state)[1]["step"])
    assert f"stopped; the same command continues the run in {run}" in errors
    refused = [str(part) for part in ("train", f"voc:{toy}:train", "--out", run, *own, "--set", "min_score=0.3")]
    message = "expected a folder without a run, or with this one, got a run with min_score=0.25 instead of 0.3"
    assert message in CliRunner().invoke(main, refused).stderr
    done, _ = finish(arguments)
    assert done.returncode == 0, done.stderr
    ours, expected = (read_tensors(folder / "model.safetensors") for folder in (run, whole))
    assert ours[1] == expected[1]
    assert all(torch.equal(ours[0][name], expected[0][name]) for name in expected[0])
    assert {entry.name for entry in run.iterdir()} == {"examples.safetensors", "model.safetensors", "run.json"}
    kept, others = (read_tensors(folder / "examples.safetensors") for folder in (run, whole))
    assert kept[1] == others[1]
    assert all(torch.equal(kept[0][name], others[0][name]) for name in others[0])
