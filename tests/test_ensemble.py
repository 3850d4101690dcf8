"""Check combined detectors against the union of what each says, suppressed and voted on in plain loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from detector.config import Config
from detector.ensemble import Ensemble, join_proposals
from detector.rcnn import RCNN
from detector.regions import RegionDetector
from detector.sppnet import SPPNet
from detector.structures import Detections, Seconds
from proposals.structures import Proposals
from tests.contracts import check_detector
from tests.test_selection import Row, suppress, vote_in_a_loop
from tests.toy import CLASSES, tiny_trunk

CONFIG = Config(
    layers=(), channels=8, hidden=32, max_proposals=200, cascade=0, vote=1.0, min_score=0.05, max_detections=60
)
KINDS: dict[str, type[RegionDetector]] = {"sppnet": SPPNet, "rcnn": RCNN}
TURNED = ("Triangle", "circle", "SQUARE")
HEIGHT, WIDTH = 90, 150


def build(seed: int, config: Config = CONFIG, names: Sequence[str] = CLASSES) -> RegionDetector:
    """Build a detector whose scores and boxes differ from region to region, as if it had learned something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = KINDS[config.detector](config, names, tiny_trunk(2))
        for layer in model.head.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.2)
        for i in range(2):
            model.reduction.get_buffer(f"mean{i}").normal_()
    return model


@pytest.fixture(scope="module")
def image() -> Tensor:
    coarse = torch.rand(1, 3, 9, 15, generator=torch.Generator().manual_seed(1)) * 255
    return nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bicubic").clamp(0, 255).to(torch.uint8)[0]


def proposed(count: int, seed: int = 2) -> Proposals:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * torch.tensor([110.0, 60.0])
    return Proposals(torch.cat([low, low + 8 + 22 * torch.rand(count, 2, generator=generator)], dim=1))


def decoded(box: list[float], deltas: list[float]) -> list[float]:
    """Apply deltas (Girshick et al. 2014, appendix C; deviations 0.1 and 0.2) and clip to the image."""
    x, y, width, height = box[0], box[1], box[2] - box[0], box[3] - box[1]
    x, y = x + width / 2 + 0.1 * deltas[0] * width, y + height / 2 + 0.1 * deltas[1] * height
    width, height = width * math.exp(0.2 * deltas[2]), height * math.exp(0.2 * deltas[3])
    corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    return [min(max(v, 0.0), float(limit)) for v, limit in zip(corners, (WIDTH, HEIGHT) * 2, strict=True)]


def rows_of(net: RegionDetector, image: Tensor, proposals: Proposals, names: Sequence[str], least: float) -> list[Row]:
    """List what a detector says of each proposal and class, with labels by name among `names`."""
    boxes = proposals.boxes[: net.config.max_proposals]
    labels = [[name.casefold() for name in names].index(name.casefold()) for name in net.class_names]
    probabilities, deltas = net.score_image(image, boxes)
    rows = []
    for rank, (box, values, moves) in enumerate(
        zip(boxes.tolist(), probabilities.tolist(), deltas.tolist(), strict=True)
    ):
        for label, value, move in zip(labels, values[:-1], moves, strict=True):
            score = value / (1 + net.config.rank_prior * rank / 1000)
            if score >= least:
                rows.append((score, label, decoded(box, move)))
    return rows


def check_rows(found: Detections, rows: Sequence[Row]) -> None:
    assert found.labels.tolist() == [label for _, label, _ in rows]
    assert found.scores.tolist() == pytest.approx([score for score, _, _ in rows], rel=1e-5)
    torch.testing.assert_close(found.boxes, torch.tensor([box for _, _, box in rows]), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("second", ["sppnet", "rcnn"])
def test_contract(second: str) -> None:
    check_detector(Ensemble([build(8), build(12, replace(CONFIG, detector=second), TURNED)]))


@pytest.mark.parametrize("count", [40, 199])
@pytest.mark.parametrize("second", ["sppnet", "rcnn"])
def test_the_union_is_suppressed_like_in_a_loop(image: Tensor, count: int, second: str) -> None:
    """Give the second detector another class order, prior and limits: prior and proposals are its own, no others."""
    other = replace(
        CONFIG, detector=second, rank_prior=3.0, max_proposals=150, nms=0.9, min_score=0.4, max_detections=3
    )
    nets, proposals = [build(8), build(12, other, TURNED)], proposed(count)
    union = [row for net in nets for row in rows_of(net, image, proposals, CLASSES, CONFIG.min_score)]
    wanted = suppress(union, CONFIG.nms)
    assert {label for _, label, _ in wanted} == {0, 1, 2}
    alone = [suppress(rows_of(net, image, proposals, CLASSES, CONFIG.min_score), CONFIG.nms) for net in nets]
    assert all(any(row in part for row in wanted) for part in alone), "both detectors must have a share"
    assert len(wanted) < len(alone[0]) + len(alone[1]), "some of each must be suppressed by the other"
    found = Ensemble(nets).predict(image, proposals)
    check_rows(found, wanted[: CONFIG.max_detections])
    assert found.class_names == CLASSES
    assert found.image is image


def test_boxes_of_all_detectors_are_averaged(image: Tensor) -> None:
    config = replace(CONFIG, vote=0.5)
    nets, proposals = [build(8, config), build(12, CONFIG)], proposed(60)
    union = [row for net in nets for row in rows_of(net, image, proposals, CLASSES, CONFIG.min_score)]
    kept = suppress(union, CONFIG.nms)[: CONFIG.max_detections]
    voted = [(score, label, vote_in_a_loop((score, label, box), union, 0.5)) for score, label, box in kept]
    check_rows(Ensemble(nets).predict(image, proposals), voted)


@pytest.mark.parametrize("count", [1, 30, 200])
@pytest.mark.parametrize("copies", [2, 3])
def test_copies_of_one_detector_find_what_it_finds(image: Tensor, count: int, copies: int) -> None:
    net, proposals = build(8), proposed(count)
    alone, together = net.predict(image, proposals), Ensemble([net] * copies).predict(image, proposals)
    assert len(alone) > 0
    assert torch.equal(together.boxes, alone.boxes)
    assert torch.equal(together.scores, alone.scores)
    assert torch.equal(together.labels, alone.labels)


def test_equal_scores_come_in_the_order_of_the_detectors(image: Tensor) -> None:
    """Let two detectors give all boxes the same scores: where they overlap, the box of the first is kept."""
    nets = [build(8), build(12)]
    for net in nets:
        net.config = replace(CONFIG, rank_prior=0.0)
        nn.init.zeros_(net.head.classes.weight)
        nn.init.zeros_(net.head.classes.bias)
    proposals = Proposals(torch.tensor([[40.0, 20, 80, 60]]))
    for pair in (nets, nets[::-1]):
        single, found = pair[0].predict(image, proposals), Ensemble(pair).predict(image, proposals)
        assert found.scores.tolist() == [0.25] * len(found)
        for box, label in zip(single.boxes, single.labels, strict=True):
            assert torch.equal(found.boxes[found.labels == label][0], box)


def test_every_detector_may_have_proposals_of_its_own(image: Tensor) -> None:
    nets, parts = [build(8), build(12, CONFIG, TURNED)], [proposed(50, seed=3), proposed(70, seed=4)]
    union = [row for n, p in zip(nets, parts, strict=True) for row in rows_of(n, image, p, CLASSES, CONFIG.min_score)]
    joined, both = join_proposals(parts), Ensemble(nets)
    check_rows(both.predict(image, joined), suppress(union, CONFIG.nms)[: CONFIG.max_detections])
    assert torch.equal(joined.boxes, torch.cat([part.boxes for part in parts]))
    with pytest.raises(ValueError, match=r"^expected proposals for 2 models, got 3$"):
        both.predict(image, join_proposals([*parts, parts[0]]))


def test_candidates_are_those_of_each_detector(image: Tensor) -> None:
    nets, proposals = [build(8), build(12, CONFIG, TURNED)], proposed(20)
    boxes, scores, refined = Ensemble(nets).candidates(image, proposals)
    assert torch.equal(boxes, torch.cat([proposals.boxes] * 2))
    for start, net in zip((0, 20), nets, strict=True):
        own = net.candidates(image, proposals)
        for label, name in enumerate(CLASSES):
            place = [n.casefold() for n in net.class_names].index(name)
            assert torch.equal(scores[start : start + 20, label], own[1][:, place])
            assert torch.equal(refined[start : start + 20, label], own[2][:, place])


def test_given_boxes_get_the_mean_probability_and_the_first_regressor(image: Tensor) -> None:
    nets, boxes = [build(8), build(12, CONFIG, TURNED)], proposed(60).boxes
    found = Ensemble(nets).predict_boxes(image, boxes)
    scored = [net.score_image(image, boxes) for net in nets]
    one, two = (p.tolist() for p, _ in scored)
    order = [1, 2, 0, 3]  # where circle, square, triangle and background are in the second
    mean = [[(a[k] + b[order[k]]) / 2 for k in range(4)] for a, b in zip(one, two, strict=True)]
    torch.testing.assert_close(found.probabilities, torch.tensor(mean))
    best = [max(range(3), key=row.__getitem__) for row in mean]
    assert best != [max(range(3), key=row.__getitem__) for row in one], "the mean must change a class"
    moves = scored[0][1].tolist()
    refined = [decoded(box, row[label]) for box, row, label in zip(boxes.tolist(), moves, best, strict=True)]
    torch.testing.assert_close(found.refined, torch.tensor(refined), rtol=1e-5, atol=1e-3)


def test_stages_of_all_detectors_are_timed(image: Tensor) -> None:
    seconds = Seconds()
    Ensemble([build(8), build(12, replace(CONFIG, detector="rcnn"))]).predict(image, proposed(9), seconds)
    assert set(seconds.stages) == {"warp", "conv", "pool", "fc", "select"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("circle", "square"), "expected b to know the classes of a, got a model without triangle"),
        ((*CLASSES, "star"), "expected b to know the classes of a, got a model with star"),
        (
            ("circle", "star", "moon"),
            "expected b to know the classes of a, got a model without square, triangle and with star, moon",
        ),
    ],
)
def test_other_classes_are_refused(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Ensemble([build(8), build(12, CONFIG, names)], ["a", "b"])
    with pytest.raises(ValueError, match=r"^expected model 3 to know the classes of model 1, got"):
        Ensemble([build(8), build(12), build(12, CONFIG, names)])


def test_one_detector_is_no_ensemble() -> None:
    with pytest.raises(ValueError, match=r"^expected two models or more to combine, got 1$"):
        Ensemble([build(8)])


def test_fingerprint_and_settings_are_those_of_all() -> None:
    nets = [build(8), build(12, replace(CONFIG, nms=0.4), TURNED)]
    both = Ensemble(nets)
    keys = {both.fingerprint(), Ensemble(nets[::-1]).fingerprint(), Ensemble([nets[0], build(7)]).fingerprint()}
    assert len(keys | {net.fingerprint() for net in nets}) == 5
    assert both.fingerprint() == Ensemble([build(8), build(12)]).fingerprint()
    expected = [{**net.config.to_dict(), "classes": list(net.class_names)} for net in nets]
    assert both.settings["models"] == expected
    assert (both.config, both.engine, both.readable_score) == (CONFIG, nets[0].engine, CONFIG.readable_score)
