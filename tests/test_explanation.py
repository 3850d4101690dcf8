"""Check that scores fall apart into bins exactly, against pooling and sums written down once more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from detector.boxes import decode
from detector.config import Config
from detector.explanation import (
    Explanation,
    bin_boxes,
    check_linear,
    detect_traced,
    explain,
    explain_boxes,
    heat_map,
)
from detector.machines import MachineNet
from detector.scales import FeaturePyramid
from detector.structures import FeatureMap
from proposals.structures import Proposals
from tests.toy import CLASSES, small_model, tiny_trunk

LEVELS = (6, 3, 2, 1)
SHAPES = [(100, 130), (190, 90), (60, 230)]


def linear_net(**settings: Any) -> MachineNet:
    """Return a detector on pool5 whose machines and regressors are random; every region is a detection at first."""
    plain = {"svm_layer": "pool5", "cascade": 0, "rank_prior": 0.0, "vote": 1.0, "min_score": 0.0, "channels": 6}
    sizes = {"shorter": 112, "longest": 224, "hidden": 16, "layers": ()}
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = MachineNet(Config(**(plain | sizes | {"detector": "svm"} | settings)), CLASSES, tiny_trunk(2))
    generator = torch.Generator().manual_seed(8)
    for part, scale in ((net.machines, 0.2), (net.ridge, 0.03)):
        part.weight.copy_(scale * torch.randn(part.weight.shape, generator=generator))
        part.bias.copy_(scale * torch.randn(part.bias.shape, generator=generator))
    return net


def photo(size: tuple[int, int]) -> Tensor:
    return torch.randint(256, (3, *size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def some_boxes(size: tuple[int, int], count: int = 25) -> Tensor:
    """Return boxes inside an image, the second equal to the first and the third on the same cells."""
    limit = torch.tensor([size[1], size[0]])
    corners = torch.rand(2, count, 2, generator=torch.Generator().manual_seed(2)) * limit
    low, high = corners.amin(dim=0), torch.maximum(corners.amax(dim=0), corners.amin(dim=0) + 1)
    boxes = torch.cat([low, high.minimum(limit)], dim=1)
    boxes[1], boxes[2] = boxes[0], boxes[0] + 0.01
    return boxes


def nearest_cells(box: Sequence[float], fine: FeatureMap) -> list[int]:
    """Return the window of a box by the rule `nearest`: He et al. 2015, appendix A."""
    window = []
    for i, value in enumerate(box):
        axis = 1 - i % 2
        cell = (value * fine.scale[axis] - (i > 1) - fine.offsets[axis]) / fine.stride
        window.append(min(max(math.floor(cell + 0.5), 0), fine.values.shape[1 + axis] - 1) + (i > 1))
    return window


def contributions_of(net: MachineNet, pyramid: FeaturePyramid, box: Sequence[float], label: int) -> list[float]:
    """Pool a box with PyTorch's own layer, and multiply bin by bin."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    fine = min(pyramid.fine, key=lambda m: abs(area * m.scale[0] * m.scale[1] - 224**2))
    x1, y1, x2, y2 = nearest_cells(box, fine)
    cells = fine.values[:, y1:y2, x1:x2]
    pooled = torch.cat([adaptive_max_pool2d(cells, n).flatten(1) for n in LEVELS], dim=1).double()
    weight, channels = net.machines.weight[label].tolist(), len(pooled)
    bins = pooled.T.tolist()
    return [sum(weight[b * channels + c] * x[c] for c in range(channels)) for b, x in enumerate(bins)]


@pytest.mark.parametrize("scales", [(), (160, 320, 640)])
@pytest.mark.parametrize("size", SHAPES)
def test_an_explanation_sums_to_the_score(size: tuple[int, int], scales: tuple[int, ...]) -> None:
    net, image, boxes = linear_net(scales=scales, nms=1.0), photo(size), some_boxes(size)
    traced = detect_traced(net, image, Proposals(boxes))
    explanations = explain(net, traced)
    pyramid = net.feature_maps(image)
    assert len(explanations) == len(traced.detections) > 50
    if scales:
        assert len(set(pyramid.locate(boxes, "area", "nearest")[0][:, 0].tolist())) > 1
    for one, row in zip(explanations, traced.detections.to_dicts(), strict=True):
        region = one.region.tolist()
        assert any(torch.equal(one.region, box) for box in boxes)
        expected = contributions_of(net, pyramid, region, one.label)
        torch.testing.assert_close(one.contributions.tolist(), expected, rtol=1e-6, atol=1e-6)
        margin = float(net.margins(pyramid, one.region[None])[0][0, one.label])
        assert one.intercept == float(net.machines.bias[one.label])
        assert abs(one.intercept + sum(expected) - margin) < 1e-4
        assert abs(one.intercept + one.total - one.margin) < 1e-4
        assert abs(1 / (1 + math.exp(-(one.intercept + one.total))) - one.score) < 1e-4
        assert (row["label"], row["score"]) == (CLASSES[one.label], round(one.score, 5))
        levels = [sum(expected[:36]), sum(expected[36:45]), sum(expected[45:49]), expected[49]]
        assert list(one.by_level()) == list(LEVELS)
        assert list(one.by_level().values()) == pytest.approx(levels, abs=1e-6)


@pytest.mark.parametrize("boxes", ["ridge", "joint", "none"])
@pytest.mark.parametrize("settings", [{}, {"vote": 0.4}, {"cascade": 9}, {"max_detections": 4}, {"max_proposals": 8}])
def test_detections_are_those_of_predict_and_know_their_proposals(boxes: str, settings: dict[str, Any]) -> None:
    size = SHAPES[0]
    net = linear_net(box_regression=boxes, nms=0.4, **settings)
    image, proposals = photo(size), Proposals(some_boxes(size, 40))
    traced, expected = detect_traced(net, image, proposals), net.predict(image, proposals)
    for name in ("boxes", "scores", "labels"):
        assert torch.equal(getattr(traced.detections, name), getattr(expected, name))
    pyramid = net.feature_maps(image)
    margins, deltas = net.margins(pyramid, traced.regions)
    labels = expected.labels
    rows = torch.arange(len(labels))
    torch.testing.assert_close(margins[rows, labels].sigmoid(), expected.scores, rtol=0, atol=1e-5)
    refined = decode(traced.regions, deltas[rows, labels])
    limit = torch.tensor([130.0, 100.0, 130.0, 100.0])
    moved = (refined.clamp(min=0).minimum(limit) - expected.boxes).abs().amax(dim=1)
    assert bool((moved > 0.5).any()) if "vote" in settings else bool((moved < 1e-3).all())
    unvoted = linear_net(box_regression=boxes, nms=0.4, **(settings | {"vote": 1.0}))
    assert torch.equal(traced.regions, detect_traced(unvoted, image, proposals).regions)


def test_a_rank_prior_lowers_the_score_and_not_the_margin() -> None:
    size = SHAPES[1]
    net, boxes = linear_net(rank_prior=40.0, nms=0.5), some_boxes(size)
    boxes[2] += 20
    traced = detect_traced(net, photo(size), Proposals(boxes))
    explanations = explain(net, traced)
    for one in explanations:
        rank = next(r for r, box in enumerate(boxes) if torch.equal(box, one.region))
        assert one.weight == pytest.approx(1 / (1 + 40 * rank / 1000))
        assert one.score == pytest.approx(one.weight / (1 + math.exp(-(one.intercept + one.total))), abs=1e-4)
    assert min(one.weight for one in explanations) < 0.9


def test_detections_of_low_scores_are_left_out_with_their_sources() -> None:
    net, image, proposals = linear_net(nms=0.5), photo(SHAPES[0]), Proposals(some_boxes(SHAPES[0]))
    traced = detect_traced(net, image, proposals)
    some = traced.above(float(traced.detections.scores[4]))
    assert [one.margin for one in explain(net, some)] == [one.margin for one in explain(net, traced)][:5]
    assert len(some.detections) == 5
    assert explain(net, traced.above(1.0)) == []
    empty = Proposals(torch.zeros(0, 4))
    assert explain(net, detect_traced(net, image, empty)) == []


def test_given_boxes_are_explained_in_their_order() -> None:
    net, image, boxes = linear_net(), photo(SHAPES[2]), some_boxes(SHAPES[2])
    boxes[3] = torch.tensor([200.0, 20.0, 400.0, 90.0])  # partly beyond the image
    scores = net.predict_boxes(image, boxes)
    explanations = explain_boxes(net, image, scores)
    assert len(explanations) == len(boxes)
    for one, box, row in zip(explanations, boxes, scores.to_dicts(), strict=True):
        assert torch.equal(one.region, box)
        assert (CLASSES[one.label], round(one.score, 5)) == (row["label"], row["score"])
        assert abs(1 / (1 + math.exp(-(one.intercept + one.total))) - one.score) < 1e-4
    assert explain_boxes(net, image, net.predict_boxes(image, torch.zeros(0, 4))) == []


MAPS = [
    (FeatureMap(torch.zeros(1, 7, 9), 16, 7.5, (1.12, 1.1)), (100, 130)),
    (FeatureMap(torch.zeros(1, 5, 6), 16, (0.0, 15.0), (0.7, 0.72)), (110, 140)),
    (FeatureMap(torch.zeros(1, 8, 8), 8, 3.5, (2.0, 2.0)), (20, 30)),  # the last rows and columns are padding
    (FeatureMap(torch.zeros(1, 4, 4), 8, 3.5, (16.0, 16.0)), (2, 2)),  # cells of half a pixel
]


@pytest.mark.parametrize(("feature_map", "size"), MAPS)
def test_a_bin_covers_the_pixels_whose_nearest_cells_it_pools(feature_map: FeatureMap, size: tuple[int, int]) -> None:
    """Every pixel belongs to the cell whose centre is nearest to its own; the box of a bin holds those of its cells."""
    rows, columns = feature_map.values.shape[1:]
    owners = []
    for axis, count in ((1, columns), (0, rows)):
        middle = (torch.arange(size[axis]).double() + 0.5) * feature_map.scale[axis] - 0.5
        cells = torch.floor((middle - feature_map.offsets[axis]) / feature_map.stride + 0.5)
        owners.append(cells.clamp(0, count - 1).long().tolist())
    for window in ((0, 0, columns, rows), (1, 0, 4, 2), (columns - 2, rows - 3, columns, rows), (2, 1, 3, 2)):
        boxes = bin_boxes(feature_map, window, LEVELS, size).tolist()
        places = [(n, i, j) for n in LEVELS for i in range(n) for j in range(n)]
        for (n, i, j), box in zip(places, boxes, strict=True):
            for axis, (place, low, high) in enumerate(((j, 0, 2), (i, 1, 3))):
                width = window[high] - window[low]
                first = window[low] + math.floor(place * width / n)
                last = window[low] + math.ceil((place + 1) * width / n)
                inside = [p for p, cell in enumerate(owners[axis]) if first <= cell < last]
                covered = [p for p in range(size[1 - axis]) if box[low] <= p + 0.5 < box[high]]
                assert 0 <= box[low] < box[high] <= size[1 - axis]
                assert covered == inside or not inside


def test_a_bin_in_the_padding_covers_the_nearest_pixels() -> None:
    feature_map, size = MAPS[2]
    x1, y1, x2, y2 = bin_boxes(feature_map, (2, 6, 5, 8), (1,), size)[0].tolist()
    assert (x1, y1, x2, y2) == (8.0, 19.0, 20.0, 20.0)


def brute_force(one: Explanation, size: tuple[int, int]) -> Tensor:
    """Spread contributions pixel by pixel."""
    heat = [[0.0] * size[1] for _ in range(size[0])]
    for (x1, y1, x2, y2), value in zip(one.boxes.tolist(), one.contributions.tolist(), strict=True):
        for y in range(size[0]):
            for x in range(size[1]):
                shared = max(0.0, min(x2, x + 1) - max(x1, x)) * max(0.0, min(y2, y + 1) - max(y1, y))
                heat[y][x] += value * shared / ((x2 - x1) * (y2 - y1))
    return torch.tensor(heat, dtype=torch.float64)


@pytest.mark.parametrize("scales", [(), (64, 160)])
@pytest.mark.parametrize("size", [(24, 37), (45, 20)])
def test_a_heat_map_holds_all_that_the_bins_add(size: tuple[int, int], scales: tuple[int, ...]) -> None:
    net, boxes = linear_net(scales=scales), some_boxes(size, 4)
    boxes[3] = torch.tensor([15.0, 20.0, 90.0, 60.0])  # reaches the map's padding
    for one in explain_boxes(net, photo(size), net.predict_boxes(photo(size), boxes)):
        heat = heat_map(one)
        (rows, columns), (x, y) = heat.values.shape, heat.corner
        whole = torch.zeros(size, dtype=torch.float64)
        whole[y : y + rows, x : x + columns] = heat.values
        torch.testing.assert_close(whole, brute_force(one, size), rtol=1e-9, atol=1e-12)
        assert float(heat.values.sum()) == pytest.approx(one.margin - one.intercept, rel=1e-4)


@pytest.mark.parametrize(
    ("net", "got"),
    [
        (small_model(), "got a model of kind sppnet"),
        (linear_net(svm_layer="fc7"), "got one on fc7"),
        (None, "got NoneType"),
    ],
)
def test_scores_that_are_no_sums_of_bins_are_refused(net: object, got: str) -> None:
    with pytest.raises(ValueError, match="expected a model of kind svm on pool5") as caught:
        check_linear(net)
    assert got in str(caught.value)
    assert "--set svm_layer=pool5" in str(caught.value)


def test_json_carries_the_sum() -> None:
    net = linear_net()
    one = explain_boxes(net, photo(SHAPES[0]), net.predict_boxes(photo(SHAPES[0]), some_boxes(SHAPES[0])[:1]))[0]
    row = one.to_dict()
    assert list(row) == ["margin", "intercept", "rank_weight", "region", "levels", "bins"]
    total = sum(part["contribution"] for part in row["bins"])
    assert row["margin"] == pytest.approx(row["intercept"] + total, abs=1e-4)
    assert row["margin"] == pytest.approx(row["intercept"] + sum(row["levels"].values()), abs=1e-4)
    assert [len(part["box"]) for part in row["bins"]] == [4] * 50
