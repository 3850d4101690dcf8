"""Check R-CNN: every proposal is a crop of its own, and the rest is what SPP-net does."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d

from detector.backbones import build_trunk
from detector.config import Config
from detector.rcnn import BATCH, RCNN
from detector.regions import RegionDetector
from detector.sppnet import SPPNet
from detector.structures import FeatureMap, Seconds
from detector.warping import warp_boxes
from proposals.structures import Proposals
from tests.contracts import check_detector
from tests.toy import CLASSES, tiny_trunk

CONFIG = Config(detector="rcnn", layers=(), channels=8, hidden=32, min_score=0.01)


LITE = dataclasses.replace(CONFIG, layers=("blocks.4", "blocks.6"))
Kind = TypeVar("Kind", bound=RegionDetector)


def build(config: Config = CONFIG, kind: type[Kind] = RCNN) -> Kind:  # type: ignore[assignment]
    """Build a detector whose scores and boxes differ from region to region, as if it had learned something."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        trunk = build_trunk(config.trunk, config.layers) if config.layers else tiny_trunk(2)
        model = kind(config, CLASSES, trunk)
        for layer in model.head.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.2)
        for i in range(2):
            model.reduction.get_buffer(f"mean{i}").normal_()
        return model


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randint(0, 256, (3, 90, 150), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def some_boxes(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    low = torch.rand(count, 2, generator=generator) * torch.tensor([120.0, 70.0])
    return torch.cat([low, low + 4 + 40 * torch.rand(count, 2, generator=generator)], dim=1)


@pytest.mark.parametrize("config", [CONFIG, LITE], ids=["tiny", "lite0"])
def test_contract(config: Config) -> None:
    check_detector(build(config))


def score_alone(model: RCNN, image: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """Warp one box, reduce its maps as those of an image, and pool the whole map by PyTorch."""
    trunk = model.trunk
    crop = warp_boxes(image, box[None], (trunk.mean.flatten(), trunk.std.flatten()))
    maps = trunk.maps(crop)
    taps = [FeatureMap(m[0], t.stride, t.offset, (1.0, 1.0)) for m, t in zip(maps, trunk.taps, strict=True)]
    reduced = model.reduction(taps)[0].values
    pooled = torch.cat([adaptive_max_pool2d(reduced, n).flatten(1) for n in CONFIG.levels], dim=1).T[None]
    logits, deltas = model.head(pooled, pooled.new_zeros(1, 0))
    return logits.softmax(dim=1)[0], deltas[0]


@pytest.mark.parametrize("count", [0, 1, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH + 3])
@torch.inference_mode()
def test_every_box_is_scored_as_if_it_were_alone(count: int, image: Tensor) -> None:
    check_alone(build(), image, count)


@torch.inference_mode()
def test_every_box_is_scored_as_if_it_were_alone_by_the_usual_trunk(image: Tensor) -> None:
    check_alone(build(LITE), image, 3)


def check_alone(model: RCNN, image: Tensor, count: int) -> None:
    boxes = some_boxes(count)
    probabilities, deltas = model.score_image(image, boxes)
    assert (tuple(probabilities.shape), tuple(deltas.shape)) == ((count, 4), (count, 3, 4))
    for r, box in enumerate(boxes):
        alone = score_alone(model, image, box)
        torch.testing.assert_close(probabilities[r], alone[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(deltas[r], alone[1], rtol=1e-3, atol=1e-4)
    if count > 1:
        assert float(probabilities.std(dim=0).max()) > 0.01, "all regions look the same"


@torch.inference_mode()
def test_the_order_of_boxes_does_not_matter(image: Tensor) -> None:
    model, boxes = build(), some_boxes(2 * BATCH + 3)
    order = torch.randperm(len(boxes), generator=torch.Generator().manual_seed(2))
    for plain, other in zip(model.score_image(image, boxes), model.score_image(image, boxes[order]), strict=True):
        torch.testing.assert_close(other, plain[order], rtol=1e-5, atol=1e-6)


@torch.inference_mode()
def test_what_is_learned_from_is_what_is_scored(image: Tensor) -> None:
    """Score boxes by the way that training takes: maps of all crops below each other, pooled by pool_regions."""
    model, boxes = build(), some_boxes(BATCH + 3)
    maps = model.crop_maps(model.warper(image)(boxes))
    assert [tuple(m.values.shape) for m in maps] == [(5, len(boxes) * 28, 28), (7, len(boxes) * 14, 14)]
    assert [(m.stride, m.offset, m.scale) for m in maps] == [(8, 3.5, (1.0, 1.0)), (16, 7.5, (1.0, 1.0))]
    logits, deltas = model.head(*model.pool_regions(maps, boxes))
    probabilities, moves = model.score_image(image, boxes)
    torch.testing.assert_close(logits.softmax(dim=1), probabilities, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(deltas, moves, rtol=1e-3, atol=1e-4)


def test_no_region_has_no_bins(image: Tensor) -> None:
    model = build()
    none = some_boxes(0)
    pooled, context = model.pool_regions(model.crop_maps(model.warper(image)(none)), none)
    assert (tuple(pooled.shape), tuple(context.shape)) == ((0, 50, 8), (0, 0))


@torch.inference_mode()
def test_a_box_changes_its_own_row_only(image: Tensor) -> None:
    model, boxes = build(), some_boxes(BATCH + 5)
    before = model.score_image(image, boxes)[0]
    boxes[7] += 11
    after = model.score_image(image, boxes)[0]
    same = torch.arange(len(boxes)) != 7
    assert torch.equal(before[same], after[same])
    assert not torch.equal(before[7], after[7])


def test_both_detectors_agree_on_a_proposal_that_is_the_whole_image() -> None:
    """R-CNN frames an image of 192 x 192 by 16 pixels of mean colour. SPP-net is shown the framed image."""
    generator = torch.Generator().manual_seed(8)
    inner = torch.randint(0, 256, (3, 192, 192), dtype=torch.uint8, generator=generator)
    framed = torch.full((3, 224, 224), 127, dtype=torch.uint8)
    framed[:, 16:208, 16:208] = inner
    config = dataclasses.replace(CONFIG, detector="sppnet", cascade=0, shorter=224, longest=448)
    rcnn, spp = build(), build(config, SPPNet)
    spp.load_state_dict(rcnn.state_dict())
    for model in (rcnn, spp):
        model.trunk.mean.fill_(127)  # a mean that bytes can have
    box, whole = torch.tensor([[0.0, 0, 192, 192]]), torch.tensor([[0.0, 0, 224, 224]])
    (probabilities, deltas), (expected, moves) = rcnn.score_image(inner, box), spp.score_image(framed, whole)
    torch.testing.assert_close(probabilities, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(deltas, moves, rtol=1e-3, atol=1e-4)
    for other in ([0.0, 0, 192, 96], [96.0, 0, 192, 192]):
        assert float((rcnn.score_image(inner, torch.tensor([other]))[1] - deltas).abs().max()) > 0.1, (
            "all look the same"
        )


def test_the_trunk_sees_every_proposal(image: Tensor) -> None:
    model, seen = build(), []
    handle = model.trunk.model.features[0].register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))  # type: ignore[index, union-attr]
    seconds = Seconds()
    model.predict(image, Proposals(some_boxes(2 * BATCH + 3)), seconds)
    handle.remove()
    assert sum(seen) == 2 * BATCH + 3
    assert max(seen) <= BATCH
    assert list(seconds.stages) == ["warp", "conv", "pool", "fc", "select"]
    assert all(value > 0 for value in seconds.stages.values())


def test_only_the_first_proposals_are_looked_at(image: Tensor) -> None:
    boxes = some_boxes(30)
    few = build(dataclasses.replace(CONFIG, max_proposals=10)).predict(image, Proposals(boxes))
    same = build().predict(image, Proposals(boxes[:10]))
    assert len(few) > 0
    assert torch.equal(few.scores, same.scores)
    assert torch.equal(few.boxes, same.boxes)


def test_what_the_race_counts() -> None:
    """Count by hand: 5 x 3 x 8 x 8 weights at each of 28 x 28 cells, 7 x 5 x 2 x 2 at each of 14 x 14."""
    crop = 2 * (5 * 3 * 64 * 28 * 28 + 7 * 5 * 4 * 14 * 14)
    rcnn, spp = build(), build(dataclasses.replace(CONFIG, detector="sppnet", shorter=224, longest=448), SPPNet)
    count = rcnn.operations((375, 500), 2000)
    assert count["conv"] == 2000 * crop
    layers = 2000 * 2 * (50 * 8 * 32 + 32 * 32 + 32 * 4 + 32 * 12)
    assert count["fc"] == layers
    assert count["pool"] == 2000 * 50 * 8 * 4
    one = spp.operations((375, 500), 2000)
    assert one["conv"] == crop * (320 / 224), "resized to 224 x 299, padded to 224 x 320"
    assert one["fc"] == layers * 300 / 2000 + 2000 * 2 * (10 * 8 * 128 + 128 * 4)
    assert one["pool"] == (300 * 50 + 2000 * 10) * 8 * 4


def test_a_map_of_its_own_leaves_no_use_for_a_mean_over_the_region() -> None:
    with pytest.raises(ValueError, match="expected no region_mean for rcnn"):
        dataclasses.replace(CONFIG, region_mean=True)
    with pytest.raises(ValueError, match="expected a detector among sppnet, rcnn, svm, got 'fast'"):
        dataclasses.replace(CONFIG, detector="fast")


def test_there_is_no_cascade() -> None:
    """Where SPP-net of the same settings has one, every region of R-CNN goes through all layers."""
    assert CONFIG.cascade > 0
    assert build().head.coarse is None
    assert build(dataclasses.replace(CONFIG, detector="sppnet"), SPPNet).head.coarse is not None
