"""Check how regions choose among scales, and that a detector with several looks at each region where it should."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from detector.boxes import project
from detector.config import Config
from detector.images import scaled_size
from detector.scales import FeaturePyramid, choose_levels, unique_rows
from detector.sppnet import SPPNet
from detector.structures import FeatureMap
from proposals.structures import Proposals
from tests.contracts import check_detector
from tests.toy import CLASSES, tiny_trunk

PAPER = (480, 576, 688, 864, 1200)
CONFIG = Config(
    layers=(), shorter=240, longest=480, scales=(160, 240, 400), channels=8, hidden=32, min_score=0.01, vote=1.0
)  # fmt: skip


def a_pyramid(sides: tuple[int, ...], size: tuple[int, int]) -> FeaturePyramid:
    """Return maps without meaning, of an image that was resized to these shorter sides."""
    maps = []
    for side in sides:
        height, width = scaled_size(size, side, 10**6)
        values = torch.zeros(1, max(height // 16, 1), max(width // 16, 1))
        maps.append(FeatureMap(values, 16, 7.5, (height / size[0], width / size[1])))
    return FeaturePyramid(tuple(maps), tuple(maps), size)


def boxes_in(size: tuple[int, int], count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    ends = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values * torch.tensor([size[1], size[0]])
    boxes = ends.flatten(1)
    boxes[:, 2:] += 1
    return boxes


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (640, 427)])
def test_by_area_a_region_is_looked_at_where_it_is_nearest_to_224_pixels_square(size: tuple[int, int]) -> None:
    boxes, pyramid = boxes_in(size, 200), a_pyramid(PAPER, size)
    found = choose_levels(boxes, pyramid, "area").tolist()
    for (x1, y1, x2, y2), level in zip(boxes.tolist(), found, strict=True):
        pixels = [(x2 - x1) * m.scale[1] * (y2 - y1) * m.scale[0] for m in pyramid.fine]
        distances = [abs(p - 224 * 224) for p in pixels]
        assert distances[level] == min(distances)
    assert set(found) == set(range(5)), "every scale is used"


@pytest.mark.parametrize("size", [(375, 500), (500, 333)])
def test_by_side_a_region_is_looked_at_where_the_image_is_nearest_to_the_side_it_wants(size: tuple[int, int]) -> None:
    """A square box of side b in an image whose shorter side is m wants the shorter side 208 m / b, a whole number."""
    pyramid = a_pyramid(PAPER, size)
    for side in (40.0, 90.0, 120.0, 150.0, 170.0, 300.0):
        box = torch.tensor([[5.0, 7.0, 5 + side, 7 + side]])
        wanted = math.floor(208 * min(size) / side + 0.5)
        expected = min(range(5), key=lambda level: abs(PAPER[level] - wanted))
        assert choose_levels(box, pyramid, "side").tolist() == [expected]


def test_the_two_rules_differ_where_the_nearest_side_is_not_the_nearest_area() -> None:
    """At sides of 480 and 576, a box that fills 224 pixels at sqrt((480^2 + 576^2) / 2) = 530.2 is between by area.

    By side that is the one that fills 208 pixels at (480 + 576) / 2 = 528.
    """
    pyramid = a_pyramid((480, 576), (480, 640))
    middle = 528 * 224 / 208
    for wanted, rules in ((529.0, (0, 0)), (531.0, (1, 0)), (middle - 2, (1, 0)), (middle + 2, (1, 1))):
        side = 224 * 480 / wanted
        box = torch.tensor([[0.0, 0.0, side, side]])
        got = tuple(int(choose_levels(box, pyramid, rule)) for rule in ("area", "side"))
        assert got == rules


def test_one_scale_leaves_no_choice() -> None:
    for rule in ("area", "side"):
        assert choose_levels(boxes_in((90, 150), 5), a_pyramid((576,), (90, 150)), rule).tolist() == [0] * 5


def test_unknown_rules_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a rule for scales among area, side, got 'nearest'"):
        choose_levels(boxes_in((90, 150), 5), a_pyramid(PAPER, (90, 150)), "nearest")


@pytest.mark.parametrize("limit", [3, 80, 5000])
def test_distinct_rows_are_those_of_torch(limit: int) -> None:
    rows = torch.randint(0, limit, (500, 5), generator=torch.Generator().manual_seed(limit))
    expected, places = torch.unique(rows, dim=0, return_inverse=True)
    found, where = unique_rows(rows)
    assert torch.equal(found, expected)
    assert torch.equal(where, places)
    assert [tuple(t.shape) for t in unique_rows(rows[:0])] == [(0, 5), (0,)]


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randint(0, 256, (3, 90, 150), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def build(config: Config) -> SPPNet:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return SPPNet(config, CLASSES, tiny_trunk())


def test_contract() -> None:
    check_detector(build(CONFIG))


@pytest.mark.parametrize("rule", ["area", "side"])
def test_every_region_is_scored_as_by_a_detector_of_its_scale_alone(rule: str, image: Tensor) -> None:
    several = build(dataclasses.replace(CONFIG, scale_rule=rule))
    boxes = boxes_in((90, 150), 60)
    boxes = torch.cat([boxes, torch.tensor([[0.0, 0, 150, 90]])])
    with torch.inference_mode():
        pyramid = several.feature_maps(image)
        probabilities, deltas = several.score_image(image, boxes)
    levels = choose_levels(boxes, pyramid, rule)
    assert [m.scale[0] for m in pyramid.fine] == [side / 90 for side in CONFIG.scales]
    assert len(levels.unique()) > 1
    for level, side in enumerate(CONFIG.scales):
        alone = build(dataclasses.replace(CONFIG, scales=(), shorter=side, longest=2 * side))
        with torch.inference_mode():
            expected = alone.score_image(image, boxes)
        chosen = levels == level
        torch.testing.assert_close(probabilities[chosen], expected[0][chosen], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(deltas[chosen], expected[1][chosen], rtol=1e-4, atol=1e-6)


def test_windows_are_those_of_the_chosen_level(image: Tensor) -> None:
    pyramid = build(CONFIG).feature_maps(image)
    boxes = boxes_in((90, 150), 80, seed=3)
    windows, rows = pyramid.locate(boxes, "area", "nearest")
    levels = choose_levels(boxes, pyramid, "area")
    assert torch.equal(windows[rows][:, 0], levels)
    for level, fine in enumerate(pyramid.fine):
        assert torch.equal(windows[rows][levels == level][:, 1:], project(boxes[levels == level], fine, "nearest"))


@pytest.mark.parametrize("cascade", [0, 10])
def test_a_scale_given_twice_changes_nothing(cascade: int, image: Tensor) -> None:
    config = dataclasses.replace(CONFIG, scales=(160,), cascade=cascade)
    twice, once = build(dataclasses.replace(config, scales=(160, 160))), build(config)
    proposals = Proposals(boxes_in((90, 150), 60))
    one, other = once.predict(image, proposals), twice.predict(image, proposals)
    assert len(one) > 3
    assert torch.equal(one.boxes, other.boxes)
    assert torch.equal(one.scores, other.scores)


def test_scales_below_one_pixel_are_refused() -> None:
    with pytest.raises(ValueError, match="expected scales of at least 1, got "):
        dataclasses.replace(CONFIG, scales=(48, 0))
