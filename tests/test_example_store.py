"""Check the rows that machines learn from: what a store keeps, what it lets go, and that a file gives it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detector.checkpoints import read_tensors, save_tensors
from detector.example_files import ExampleOrigin, load_examples, save_examples
from detector.example_store import ExampleStore
from detector.mining import Miner, MiningRule, mine
from detector.svm import LinearSVM
from tests.test_mining import EVERY, toy

NAMES = ("cat", "dog", "bus")
Rows = dict[tuple[int, int], tuple[list[float], list[int], list[float]]]


def filled(max_rows: int = 40) -> ExampleStore:
    """Return a store of three classes with 6 positives and some negatives, some of them shared."""
    numbers = np.random.default_rng(1)
    store = ExampleStore(3, 5, max_rows)
    for label in (1, 0, 2):
        store.add_positives(label, numbers.random((1 + label, 5), dtype=np.float32))
    store.sort_positives()
    for image in (0, 3):
        store.add(image, numbers.random((9, 5), dtype=np.float32), numbers.random((9, 3)) < 0.4)
    rows = store.count
    store.alpha[:, :rows] = np.where(store.signs[:rows].T != 0, numbers.random((3, rows)), 0)
    store.scale = 1 / 3
    return store


def contents(store: ExampleStore) -> Rows:
    """Return what a store holds of every row, by its key."""
    return {
        tuple(store.keys[row].tolist()): (
            store.features[row].tolist(), store.signs[row].tolist(), store.alpha[:, row].tolist(),
        )
        for row in range(store.count)
    }  # fmt: skip


def test_positives_come_in_the_order_of_their_classes() -> None:
    store = filled()
    assert store.signs[:6].tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]]
    given = np.random.default_rng(1).random((6, 5), dtype=np.float32)  # of class 1, 1, 0, 2, 2, 2
    assert store.features[:6].tolist() == given[[2, 0, 1, 3, 4, 5]].tolist()
    assert (store.keys[:6].tolist(), store.fixed) == ([[-1, k] for k in range(6)], 6)
    with pytest.raises(ValueError, match="expected max_rows above the 40 positives, got 40"):
        store.add_positives(0, np.zeros((40 - store.count, 5), np.float32))
    with pytest.raises(ValueError, match="expected classes, features and rows of 1 or more"):
        ExampleStore(0, 5, 3)


def test_what_is_let_go_is_gone_and_what_is_not_stays() -> None:
    """Follow a hundred random steps in a dictionary."""
    numbers = np.random.default_rng(2)
    store = filled(200)
    for step in range(100):
        before = contents(store)
        if step % 2:
            useless = (numbers.random((store.count, 3)) < 0.3) & (store.signs[: store.count] < 0)
            gone = {tuple(store.keys[row].tolist()): useless[row] for row in range(store.count)}
            store.forget(useless)
            expected: Rows = {}
            for key, (features, signs, alpha) in before.items():
                kept = [0 if g else s for g, s in zip(gone[key], signs, strict=True)]
                if any(kept):
                    expected[key] = (features, kept, [0.0 if g else a for g, a in zip(gone[key], alpha, strict=True)])
        else:
            image = int(numbers.integers(5, 9))
            # a region has the same features whenever it comes
            features = np.random.default_rng(image).random((8, 5), dtype=np.float32)
            wanted = (numbers.random((8, 3)) < 0.3) & ~store.known(image, 8)
            store.add(image, features, wanted)
            expected = dict(before)
            for region in np.flatnonzero(wanted.any(axis=1)).tolist():
                _, signs, alpha = before.get((image, region), (None, [0, 0, 0], [0.0, 0.0, 0.0]))
                signs = [-1 if w else s for w, s in zip(wanted[region], signs, strict=True)]
                expected[image, region] = (features[region].tolist(), signs, alpha)
        assert contents(store) == expected
        for image in range(9):
            signs = [expected.get((image, region), (0, [0, 0, 0]))[1] for region in range(9)]
            assert store.known(image, 9).tolist() == [[s < 0 for s in row] for row in signs]
        assert not store.signs[store.count :].any() and not store.alpha[:, store.count :].any()


def test_a_class_is_taken_out_and_put_back() -> None:
    store = filled()
    before = contents(store)
    part = store.take_class(1, 30)
    own = {key: row for key, row in before.items() if row[1][1]}
    assert contents(part) == {key: (f, [s[1]], [a[1]]) for key, (f, s, a) in own.items()}
    assert (part.scale, len(part.features)) == (1 / 3, 30)
    store.put_class(1, part)
    assert contents(store) == before
    with pytest.raises(ValueError, match=r"expected a class in \[0, 3\), got 3"):
        store.take_class(3, 30)
    with pytest.raises(ValueError, match=f"expected max_rows above the {len(own)} rows of the class"):
        store.take_class(1, len(own))


def test_a_class_that_was_changed_leaves_the_others_alone() -> None:
    """Forget a negative, add some and a positive to a full store; compare by key."""
    store = ExampleStore.from_tensors(filled().to_tensors(), 1 / 3)
    assert store.room == 0
    before = contents(store)
    part = store.take_class(2, 60)
    part.forget((part.signs[: part.count] < 0) & (np.arange(part.count) % 2 == 0)[:, None])
    part.add_positives(0, np.full((1, 5), 7, np.float32))
    assert part.keys[part.count - 1].tolist() == [-1, 6]
    part.add(store.next_image, np.full((2, 5), 8, np.float32), np.array([[True], [True]]))
    part.alpha[0, : part.count] = 0.5
    store.put_class(2, part)
    after = contents(store)
    for key, (features, signs, alpha) in before.items():
        if any(signs[:2]):
            assert (after[key][0], after[key][1][:2], after[key][2][:2]) == (features, signs[:2], alpha[:2])
    assert contents(part) == {key: (f, [s[2]], [a[2]]) for key, (f, s, a) in after.items() if s[2]}
    assert {(-1, 6), (4, 0), (4, 1)} == after.keys() - before.keys()
    assert all(any(signs) for _, signs, _ in after.values())


ORIGIN = ExampleOrigin("abc", NAMES, LinearSVM(C=0.1, loss="squared_hinge"), MiningRule(retrain_limit=7))


def test_a_file_gives_the_store_back(tmp_path: Path) -> None:
    store, path = filled(), tmp_path / "examples.safetensors"
    save_examples(path, store, ORIGIN)
    again, origin = load_examples(path)
    for name, tensor in store.to_tensors().items():
        assert torch.equal(again.to_tensors()[name], tensor)
    assert (again.scale, again.count, again.room, again.next_object, again.next_image) == (1 / 3, store.count, 0, 6, 4)
    assert again.known(3, 9).tolist() == store.known(3, 9).tolist()
    assert (origin.run, origin.class_names, origin.rule) == ("abc", NAMES, ORIGIN.rule)
    assert origin.svm.get_params() == ORIGIN.svm.get_params()
    empty = ExampleStore.from_tensors(ExampleStore(3, 5, 9).to_tensors(), 1.0, 9)
    assert (empty.count, empty.room, empty.next_image) == (0, 9, 0)


def changed(tensors: dict[str, Tensor], name: str, value: Any) -> dict[str, Tensor]:
    """Return tensors of which one has another first value."""
    other = tensors[name].clone()
    other[0, 0] = value
    return {**tensors, name: other}


def test_a_file_that_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "examples.safetensors"
    save_examples(path, filled(), ORIGIN)
    tensors, metadata = read_tensors(path)
    tensors = {name: value.clone() for name, value in tensors.items()}
    cases: list[tuple[dict[str, Tensor], dict[str, str], str]] = [
        ({n: t for n, t in tensors.items() if n != "keys"}, metadata, "expected keys as a matrix of torch.int64"),
        ({**tensors, "alpha": tensors["alpha"][:2]}, metadata, "expected alpha of shape"),
        (changed(tensors, "signs", 3), metadata, "expected signs of 1, -1 and 0"),
        (changed(tensors, "alpha", -1.0), metadata, "expected finite dual variables of 0 or more"),
        (changed(tensors, "features", float("nan")), metadata, "expected finite features"),
        (changed(tensors, "keys", 5), metadata, "expected keys that differ, with -1 for positives alone"),
        (tensors, {**metadata, "format": "sppnet-1"}, "expected a file of examples of format sppnet-examples-1"),
        (tensors, {**metadata, "svm": json.dumps({"D": 1})}, "unexpected keyword argument 'D'"),
        (tensors, {**metadata, "rule": "{"}, "expected rule as JSON"),
        (tensors, {**metadata, "class_names": '["cat"]'}, r"expected 3 class names, got \[\"cat\"\]"),
        (tensors, {**metadata, "scale": "-1"}, "expected a positive scale, got -1"),
    ]
    for values, texts, message in cases:
        save_tensors(values, path, texts)
        with pytest.raises(ValueError, match=f"^{path}: .*{message}"):
            load_examples(path)
    with pytest.raises(ValueError, match="expected at most 3 rows"):
        ExampleStore.from_tensors(tensors, 1.0, 3)


@pytest.mark.parametrize("rule", [EVERY, MiningRule(duplicates="none", epochs=2, retrain_limit=10, max_rows=105)])
def test_a_miner_goes_on_from_tensors_as_if_it_had_not_stopped(rule: MiningRule) -> None:
    """Make a new store and a new miner after every image, from a copy of the tensors of the last."""
    images, positives = toy()
    svm, other = LinearSVM(C=0.05), LinearSVM(C=0.05)
    whole = mine(images, positives, svm, rule, scale=1.5)
    store = ExampleStore(3, 24, rule.max_rows)
    for label, rows in enumerate(positives.values()):
        store.add_positives(label, rows)
    store.scale = 1.5
    miner, stops = Miner(store, tuple(positives), other, rule), 0
    while not miner.done:
        if miner.image < len(images):
            miner.visit(miner.image, images[miner.image])
        else:
            miner.end_pass()
        tensors = {name: value.clone() for name, value in miner.to_tensors().items()}
        miner = Miner(ExampleStore.from_tensors(tensors, 1.5, rule.max_rows), tuple(positives), other, rule)
        miner.take_up(tensors)
        stops += 1
    report = miner.finish()
    assert stops == (len(images) + 1) * whole.epochs > len(images) + 1
    for name in ("coef_", "intercept_", "objective_", "gap_", "n_iter_"):
        assert getattr(other, name).tobytes() == getattr(svm, name).tobytes()
    for name in ("added", "evicted", "kept", "trainings"):
        assert getattr(report, name).tolist() == getattr(whole, name).tolist()
    assert (report.crowded, report.epochs) == (whole.crowded, whole.epochs)
    with pytest.raises(ValueError, match=r"expected coef of shape \(3, 24\)"):
        miner.take_up({**tensors, "coef": tensors["coef"][:2]})
