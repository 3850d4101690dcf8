"""Check the detector on a small trunk with random weights: order, sharing, stages, and boxes that users bring."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d
from torchvision.ops import batched_nms

from detector.backbones import Trunk, build_trunk
from detector.boxes import decode, project
from detector.config import Config
from detector.sppnet import SPPNet
from detector.structures import BoxScores, Seconds
from proposals.structures import Proposals
from tests.contracts import check_detector

NAMES = ("cat", "dog", "boat")
LAYERS = ("layer3", "layer4")
CONFIG = Config(
    trunk="resnet18", layers=LAYERS, shorter=128, longest=256, region_mean=True, channels=8, hidden=32, min_score=0.05,
    rank_prior=0.0, vote=1.0, seed=3,
)  # fmt: skip
HEIGHT, WIDTH = 100, 170


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return build_trunk("resnet18", LAYERS, pretrained=False, seed=11)


def build(trunk: Trunk, config: Config = CONFIG) -> SPPNet:
    """Build a detector whose scores and boxes differ from region to region, as if it had learned something."""
    with torch.random.fork_rng():
        torch.manual_seed(12)
        model = SPPNet(config, NAMES, trunk)
        nn.init.normal_(model.head.classes.weight, std=0.5)
        nn.init.normal_(model.head.deltas.weight, std=0.5)
    return model


@pytest.fixture
def model(trunk: Trunk) -> SPPNet:
    return build(trunk)


@pytest.fixture
def image(generator: torch.Generator) -> Tensor:
    coarse = torch.rand(1, 3, 10, 17, generator=generator) * 255
    return nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bicubic").clamp(0, 255).to(torch.uint8)[0]


def some_boxes(count: int, generator: torch.Generator) -> Tensor:
    low = torch.rand(count, 2, generator=generator) * torch.tensor([110.0, 60.0])
    side = 8 + torch.rand(count, 2, generator=generator) * torch.tensor([50.0, 32.0])
    return torch.cat([low, low + side], dim=1)


def distinct_boxes(model: SPPNet, image: Tensor, generator: torch.Generator) -> Tensor:
    """Return boxes of which no two fall on the same cells, so that no two have the same scores."""
    boxes = some_boxes(80, generator)
    seen: dict[tuple[int, ...], int] = {}
    for i, window in enumerate(project(boxes, model.feature_maps(image).fine[0], CONFIG.projection).tolist()):
        seen.setdefault(tuple(window), i)
    return boxes[list(seen.values())]


def test_contract(model: SPPNet) -> None:
    check_detector(model)


def test_probabilities_are_those_of_every_region_by_itself(
    model: SPPNet, image: Tensor, generator: torch.Generator
) -> None:
    """Pool each window with PyTorch, average the last tap's pixels under it, and classify it alone.

    A cell is a square of pixels around its centre: 16 of them from -8 on, and 32 from -16 on for the last tap, whose
    last cells are 8 pixels too short.
    """
    boxes = some_boxes(25, generator)
    with torch.inference_mode():
        pyramid = model.feature_maps(image)
        maps = pyramid.fine[0], pyramid.coarse[0]
        assert (maps[0].stride, maps[0].offset, maps[1].stride, maps[1].offset) == (16, 0, 32, 0)
        picture = maps[1].values.repeat_interleave(32, dim=1).repeat_interleave(32, dim=2)[:, 8:, 8:]
        picture = nn.functional.pad(picture[None], (0, 8, 0, 8), mode="replicate")[0]
        probabilities, deltas = model.score(pyramid, boxes)
        for r, (x1, y1, x2, y2) in enumerate(project(boxes, maps[0], CONFIG.projection).tolist()):
            crop = maps[0].values[:, y1:y2, x1:x2]
            pooled = torch.cat([adaptive_max_pool2d(crop, n).flatten(1) for n in CONFIG.levels], dim=1).T[None]
            mean = picture[:, 16 * y1 : 16 * y2, 16 * x1 : 16 * x2].mean(dim=(1, 2))
            logits, moves = model.head(pooled, model.head.context.weight @ mean)
            torch.testing.assert_close(probabilities[r], logits.softmax(dim=1)[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(deltas[r], moves[0], rtol=1e-4, atol=1e-4)
    assert float(probabilities.std(dim=0).max()) > 0.01, "all regions look the same"


def test_the_order_of_proposals_does_not_matter(model: SPPNet, image: Tensor, generator: torch.Generator) -> None:
    boxes = distinct_boxes(model, image, generator)
    order = torch.randperm(len(boxes), generator=generator)
    one, other = model.predict(image, Proposals(boxes)), model.predict(image, Proposals(boxes[order]))
    assert len(one) > 5
    assert torch.equal(one.boxes, other.boxes)
    assert torch.equal(one.scores, other.scores)
    assert torch.equal(one.labels, other.labels)


def test_detections_are_the_best_of_what_the_boxes_score(
    model: SPPNet, image: Tensor, generator: torch.Generator
) -> None:
    """Rebuild the detections from predict_boxes' numbers and torchvision's suppression."""
    boxes = distinct_boxes(model, image, generator)
    with torch.inference_mode():
        probabilities, deltas = model.score(model.feature_maps(image), boxes)
    rows, labels = (probabilities[:, :-1] >= CONFIG.min_score).nonzero(as_tuple=True)
    limit = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    refined = decode(boxes, deltas)[rows, labels].clamp(min=0).minimum(limit)
    scores = probabilities[rows, labels]
    solid = ((refined[:, 2:] - refined[:, :2]) > 0).all(dim=1)
    kept = solid.nonzero()[:, 0][batched_nms(refined[solid], scores[solid], labels[solid], CONFIG.nms)]
    found = model.predict(image, Proposals(boxes))
    assert torch.equal(found.scores, scores[kept][: CONFIG.max_detections])
    assert torch.equal(found.labels, labels[kept][: CONFIG.max_detections])
    torch.testing.assert_close(found.boxes, refined[kept][: CONFIG.max_detections])
    assert found.image is image


def test_the_order_of_proposals_counts_as_much_as_asked(
    trunk: Trunk, image: Tensor, generator: torch.Generator
) -> None:
    """Keep every class of every box: scores of box r must be those without the prior, over 1 + 500 r / 1000."""
    config = dataclasses.replace(CONFIG, nms=1.0, min_score=0.0, max_detections=1000)
    plain, weighed = build(trunk, config), build(trunk, dataclasses.replace(config, rank_prior=500.0))
    proposals = Proposals(distinct_boxes(plain, image, generator))
    with torch.inference_mode():
        probabilities, _ = plain.score(plain.feature_maps(image), proposals.boxes)
    ranks = torch.arange(len(proposals))[:, None]
    expected = (probabilities[:, :-1] / (1 + ranks / 2)).flatten().sort(descending=True).values
    found = weighed.predict(image, proposals).scores
    assert len(found) > 100
    torch.testing.assert_close(found, expected[: len(found)], rtol=1e-5, atol=1e-7)


def test_boxes_on_the_same_cells_are_classified_once(model: SPPNet, image: Tensor, generator: torch.Generator) -> None:
    boxes = distinct_boxes(model, image, generator)
    twins = torch.cat([boxes, boxes + 0.01, boxes[:3]])
    seen: list[int] = []
    model.head.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    with torch.inference_mode():
        pyramid = model.feature_maps(image)
        windows = [tuple(w) for w in project(twins, pyramid.fine[0], CONFIG.projection).tolist()]
        probabilities, deltas = model.score(pyramid, twins)
    assert seen == [len(set(windows))]
    assert seen[0] < len(twins)
    first = [windows.index(window) for window in windows]
    assert torch.equal(probabilities, probabilities[first])
    assert torch.equal(deltas, deltas[first])


@pytest.mark.parametrize("count", [0, 1, 60])
def test_the_trunk_runs_once_however_many_proposals(
    model: SPPNet, image: Tensor, generator: torch.Generator, count: int
) -> None:
    calls: list[int] = []
    handle = model.trunk.model.conv1.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[operator, union-attr]
    model.predict(image, Proposals(some_boxes(count, generator)))
    handle.remove()
    assert calls == [1]


def test_stages_are_timed(model: SPPNet, image: Tensor, generator: torch.Generator) -> None:
    boxes = some_boxes(9, generator)
    for run in (lambda s: model.predict(image, Proposals(boxes), s), lambda s: model.predict_boxes(image, boxes, s)):
        seconds = Seconds()
        run(seconds)
        assert list(seconds.stages) == ["conv", "pool", "fc", "select"]
        assert all(value > 0 for value in seconds.stages.values())


def test_no_proposals(model: SPPNet, image: Tensor) -> None:
    found = model.predict(image, Proposals(torch.zeros(0, 4)))
    assert (len(found), found.size, found.class_names) == (0, (HEIGHT, WIDTH), NAMES)
    assert tuple(model.predict_boxes(image, torch.zeros(0, 4)).probabilities.shape) == (0, 4)


def test_only_the_first_proposals_are_looked_at(trunk: Trunk, image: Tensor, generator: torch.Generator) -> None:
    boxes = some_boxes(30, generator)
    few = build(trunk, dataclasses.replace(CONFIG, max_proposals=10)).predict(image, Proposals(boxes))
    same = build(trunk).predict(image, Proposals(boxes[:10]))
    assert torch.equal(few.scores, same.scores)
    assert torch.equal(few.boxes, same.boxes)


def test_box_scores_are_in_the_order_of_the_boxes(model: SPPNet, image: Tensor, generator: torch.Generator) -> None:
    boxes = some_boxes(20, generator)
    scores: BoxScores = model.predict_boxes(image, boxes)
    assert torch.equal(scores.boxes, boxes)
    torch.testing.assert_close(scores.probabilities.sum(dim=1), torch.ones(20))
    for i in (0, 7, 19):
        alone = model.predict_boxes(image, boxes[i : i + 1])
        torch.testing.assert_close(alone.probabilities[0], scores.probabilities[i], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.refined[0], scores.refined[i], rtol=1e-4, atol=1e-2)
    with torch.inference_mode():
        _, deltas = model.score(model.feature_maps(image), boxes)
    best = scores.probabilities[:, :-1].argmax(dim=1)
    moved = decode(boxes, deltas)[torch.arange(20), best]
    limit = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    torch.testing.assert_close(scores.refined, moved.clamp(min=0).minimum(limit))


def bad_boxes() -> Iterator[Tensor]:
    fine = [5.0, 5.0, 50.0, 40.0]
    for bad in (
        [20, 20, 20, 40],
        [20, 40, 60, 40],
        [60, 20, 20, 40],
        [170, 5, 190, 40],
        [5, 100, 9, 120],
        [-9, 5, 0, 40],
    ):
        yield torch.tensor([fine, bad])
    yield torch.tensor([[float("nan"), 5, 50, 40]])
    yield torch.tensor([[5, 5, float("inf"), 40]])
    yield torch.tensor([[5, 5, 50, 40]])
    yield torch.zeros(3, 5)


@pytest.mark.parametrize("boxes", [*bad_boxes()], ids=lambda boxes: str(boxes.tolist()[-1]))
def test_bad_boxes_are_refused(model: SPPNet, image: Tensor, boxes: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^expected .*, got "):
        model.predict_boxes(image, boxes)


def test_boxes_that_stick_out_of_the_image_are_scored(model: SPPNet, image: Tensor) -> None:
    boxes = torch.tensor([[-30.0, -20, 40, 50], [150, 80, 900, 700]])
    scores = model.predict_boxes(image, boxes)
    assert torch.equal(scores.boxes, boxes)
    assert bool((scores.refined >= 0).all())
    assert bool((scores.refined <= torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])).all())


def test_maps_that_are_kept_give_the_same_detections(model: SPPNet, image: Tensor, generator: torch.Generator) -> None:
    proposals = Proposals(distinct_boxes(model, image, generator))
    one, other = model.predict(image, proposals), model.detect(model.feature_maps(image), proposals)
    assert len(one) > 5
    assert torch.equal(one.boxes, other.boxes)
    assert torch.equal(one.scores, other.scores)
    assert (other.size, other.image) == ((HEIGHT, WIDTH), None)


def test_a_detector_may_do_without_context(trunk: Trunk, image: Tensor, generator: torch.Generator) -> None:
    model = build(trunk, dataclasses.replace(CONFIG, region_mean=False))
    assert len(model.predict(image, Proposals(some_boxes(30, generator)))) > 0
    assert not any("context" in name for name in model.learned_state())


def test_only_reduction_and_head_learn(model: SPPNet) -> None:
    learned = model.learned_parameters()
    assert {name.split(".")[0] for name in learned} == {"reduction", "head"}
    assert {id(p) for p in learned.values()} == {id(p) for p in model.parameters() if p.requires_grad}
    state = model.learned_state()
    assert {name: id(p) for name, p in learned.items()}.items() <= {n: id(v) for n, v in state.items()}.items()
    measured = {f"reduction.{what}{i}" for what in ("mean", "deviation") for i in range(2)}
    assert state.keys() - learned.keys() == measured, "what was measured belongs to the detector too"


def test_the_fingerprint_changes_with_any_learned_value(trunk: Trunk) -> None:
    model, twin = build(trunk), build(trunk)
    assert model.fingerprint() == twin.fingerprint()
    assert len(model.fingerprint()) == 16
    for value in twin.learned_state().values():
        before = value.detach().clone()
        with torch.no_grad():
            value.view(-1)[-1] += 1e-3
        assert twin.fingerprint() != model.fingerprint()
        value.data.copy_(before)
    assert twin.fingerprint() == model.fingerprint()


def test_settings_are_the_config(model: SPPNet) -> None:
    assert json.loads(json.dumps(dict(model.settings))) == CONFIG.to_dict()
    assert model.readable_score == CONFIG.readable_score
    assert model.class_names == NAMES
