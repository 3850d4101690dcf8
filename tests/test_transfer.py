"""Check which layers of a trained detector come along, and which mismatches are refused by the layer's name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from detector.backbones import Trunk
from detector.cli.train_machines import build, settings_of
from detector.machines import MachineNet
from detector.sppnet import SPPNet
from detector.transfer import take_layers
from tests.toy import CLASSES, SMALL, tiny_trunk

BASE = replace(SMALL, region_mean=False, cascade=20)
OTHERS = ("cat", "dog", "bird", "fish")


def model(seed: int, names: Sequence[str] = CLASSES, trunk: Trunk | None = None, **changes: Any) -> SPPNet:
    """Return a detector of which every learned value is random, statistics too."""
    net = SPPNet(replace(BASE, **changes), names, trunk or tiny_trunk(2))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in net.learned_state().values():
            value.copy_(1 + torch.rand(value.shape, generator=generator))
    return net


def copied(net: SPPNet, start: SPPNet) -> set[str]:
    """Let a detector take another one's layers; return the names of the values that came along, whole."""
    before = {name: value.detach().clone() for name, value in net.learned_state().items()}
    given = {name: value.detach().clone() for name, value in start.learned_state().items()}
    take_layers(net, start)
    came = {name for name, value in net.learned_state().items() if name in given and torch.equal(value, given[name])}
    for name, value in net.learned_state().items():
        assert name in came or torch.equal(value, before[name])
    assert all(torch.equal(value, given[name]) for name, value in start.learned_state().items())
    return came


def test_all_layers_come_along_to_the_same_classes() -> None:
    net = model(1)
    assert copied(net, model(2)) == net.learned_state().keys()
    assert all(p.requires_grad for p in net.learned_parameters().values())


@pytest.mark.parametrize("names", [OTHERS, CLASSES[::-1], CLASSES[:2], ("a", "b", "c")])
def test_layers_that_name_classes_stay_for_others(names: tuple[str, ...]) -> None:
    net = model(1, names)
    stays = {n for n in net.learned_state() if n.startswith(("head.classes.", "head.deltas.", "head.coarse."))}
    assert len(stays) == 8
    assert copied(net, model(2)) == net.learned_state().keys() - stays


@pytest.mark.parametrize("names", [CLASSES, OTHERS])
def test_a_cascade_may_be_new_or_left_out(names: tuple[str, ...]) -> None:
    new = model(1, names)
    came = copied(new, model(2, cascade=0))
    assert {n for n in new.learned_state() if n.startswith("head.coarse.")} & came == set()
    out = model(1, names, cascade=0)
    classes = {n for n in out.learned_state() if n.startswith(("head.classes.", "head.deltas."))}
    assert copied(out, model(2)) == out.learned_state().keys() - (classes if names != CLASSES else set())


@pytest.mark.parametrize(
    ("changes", "layer"),
    [
        ({"channels": 4}, "reduction.linears.0.weight"),
        ({"hidden": 16}, "head.fc6.weight"),
        ({"levels": (4, 2, 1)}, "head.fc6.weight"),
        ({"region_mean": True}, "head.context.weight"),
    ],
)
def test_layers_that_do_not_fit_are_named_both_ways(changes: dict[str, Any], layer: str) -> None:
    for net, start in ((model(1, **changes), model(2)), (model(1), model(2, **changes))):
        with pytest.raises(ValueError) as error:
            take_layers(net, start)
        assert str(error.value) == f"--start: expected settings that fit its layers, got others ({layer})"


def test_layers_over_another_trunk_are_refused() -> None:
    """Give trunks whose maps have as many channels: shapes alone cannot tell them apart."""
    other = tiny_trunk(2)
    other.name = "huge"
    random = tiny_trunk(2)
    random.origin = "random 3"
    for trunk, words in (
        (other, "got huge features.0 features.1"),
        (random, "got tiny features.0 features.1 (random 3)"),
        (tiny_trunk(1), "got tiny features.0"),
    ):
        with pytest.raises(ValueError) as error:
            take_layers(model(1, trunk=trunk), model(2))
        assert str(error.value) == f"--start: expected the trunk of its layers, tiny features.0 features.1, {words}"


def test_machines_take_the_layers_of_a_detector_of_other_classes() -> None:
    start = model(2)
    for names in (None, OTHERS):
        net = build(start, settings_of(start.config, None, ["box_regression=ridge"]), names)
        assert isinstance(net, MachineNet)
        assert net.class_names == (names or CLASSES)
        assert net.machines.out_features == len(net.class_names)
        assert net.ridge.out_features == 4 * len(net.class_names)
        for layer in ("fc6", "fc7", "norm"):
            ours, theirs = (part.head.get_submodule(layer).weight for part in (net, start))
            assert torch.equal(ours, theirs)  # type: ignore[arg-type]
        assert torch.equal(net.head.deltas.weight, start.head.deltas.weight) == (names is None)
        again = build(start, net.config, names)
        assert torch.equal(net.head.deltas.weight, again.head.deltas.weight)  # a run can be repeated
    with pytest.raises(ValueError, match=r"^box_regression=joint: expected the classes of --start, got others"):
        build(start, settings_of(start.config, None, ["box_regression=joint"]), OTHERS)
    build(start, settings_of(start.config, None, ["box_regression=joint"]), CLASSES)


def test_machines_of_a_detector_are_no_layers_of_another() -> None:
    start = model(2)
    first = build(start, settings_of(start.config, None, ()))
    with torch.no_grad():
        first.machines.weight.fill_(3.0)
        first.ridge.weight.fill_(3.0)
    second = build(first, settings_of(first.config, None, ()))
    assert not second.machines.weight.any()
    assert not second.ridge.weight.any()
    assert torch.equal(second.head.fc7.weight, start.head.fc7.weight)
