"""Check the split into learned and held-out images, and that measuring from caches equals predicting from photos."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from detector.backbones import Tap, Trunk
from detector.evaluation import evaluate
from detector.images import read_image
from detector.preparation import prepare
from detector.validation import hold_out, measure_held_out
from tests.toy import CLASSES, draw, make_caches, small_model, toy_samples


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the specification of 24 drawn training images."""
    return f"voc:{draw(tmp_path_factory.mktemp('toy'), 32)}:train"


@pytest.mark.parametrize(("part", "count"), [(0.0, 0), (0.1, 2), (0.25, 6), (0.5, 12), (1.0, 24)])
def test_a_part_is_held_out_and_the_rest_is_learned_from(drawn: str, part: float, count: int) -> None:
    samples = toy_samples(drawn)
    assert len(samples) == 24
    learned, held = hold_out(samples, part, 7)
    assert (len(learned), len(held)) == (24 - count, count)
    both = [sample.image_id for sample in (*learned, *held)]
    assert sorted(both) == sorted(sample.image_id for sample in samples)
    for group in (learned, held):
        places = [samples.index(sample) for sample in group]
        assert places == sorted(places)


def test_the_split_depends_on_the_seed_alone(drawn: str) -> None:
    splits = [tuple(s.image_id for s in hold_out(toy_samples(drawn), 0.25, seed)[1]) for seed in (3, 3, 4, 5, 6)]
    assert splits[0] == splits[1]
    assert len(set(splits)) == 4


class Corners(nn.Conv2d):
    """Pick colours of pixels of 8 x 8: whole numbers, which float16 keeps as they are."""

    def __init__(self) -> None:
        super().__init__(3, 5, 8, stride=8, bias=False)
        nn.init.zeros_(self.weight)
        with torch.no_grad():
            for i, (colour, y, x) in enumerate([(0, 1, 2), (1, 4, 4), (2, 6, 3), (0, 3, 7), (2, 0, 5)]):
                self.weight[i, colour, y, x] = 1


def test_measuring_from_caches_equals_predicting_image_by_image(tmp_path: Path, drawn: str) -> None:
    model = nn.Module()
    model.features = nn.Sequential(Corners())
    trunk = Trunk("corners", model, (Tap("features.0", 8, 3.5, 5),), (torch.zeros(3), torch.ones(3)))
    net = small_model(trunk=trunk)
    nn.init.normal_(net.head.classes.weight, std=0.5)
    samples = toy_samples(drawn)[:8]
    caches = make_caches(tmp_path, net)
    prepare(samples, caches, 1, lambda _: None)
    net.reduction.measure([net.extractor(read_image(sample.path)) for sample in samples])
    net.train()
    counts: list[int] = []
    measured = measure_held_out(net, samples, caches, counts.append)
    assert not net.training
    assert counts == [1] * 8
    proposals = [caches.proposals.load(sample.image_id) for sample in samples]
    found = [net.predict(read_image(s.path), p) for s, p in zip(samples, proposals, strict=True)]  # type: ignore[arg-type]
    expected = evaluate(found, [sample.truth for sample in samples], CLASSES, ["voc07", "voc10"])
    assert measured.keys() == expected.keys() == {"voc07", "voc10"}
    assert measured["voc10"].map == expected["voc10"].map > 0
    assert measured["voc07"].map == expected["voc07"].map
