"""Check the small classifier that chooses the regions for the large layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from detector.batches import Regions
from detector.boxes import project
from detector.checkpoints import load_detector, save_detector
from detector.config import Config
from detector.heads import coarse_part
from detector.pooling import bins, spatial_pyramid_pool
from detector.scales import choose_levels
from detector.selection import select, weigh_by_rank
from detector.sppnet import SPPNet
from detector.structures import FeatureMap
from detector.training import Run, batch_losses, train
from proposals.structures import Proposals
from tests.toy import CLASSES, SMALL, small_model, tiny_trunk

CONFIG = Config(
    layers=(), shorter=90, longest=180, channels=8, hidden=32, cascade=12, min_score=0.01, vote=1.0, rank_prior=2.0
)


def build(config: Config = CONFIG) -> SPPNet:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = SPPNet(config, CLASSES, tiny_trunk())
        for layer in model.head.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.3)
        return model


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randint(0, 256, (3, 90, 150), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def some_boxes(count: int = 60, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * torch.tensor([110.0, 60.0])
    return torch.cat([low, low + 8 + 30 * torch.rand(count, 2, generator=generator)], dim=1)


@pytest.mark.parametrize(
    ("levels", "coarse"), [((6, 3, 2, 1), (3, 1)), ((4, 2, 1), (2, 1)), ((2, 1), (1,)), ((12, 6, 3, 2), (6, 3, 2))]
)
def test_the_coarse_part_is_the_second_level_and_its_divisors(levels: tuple[int, ...], coarse: tuple[int, ...]) -> None:
    found, numbers = coarse_part(levels)
    assert found == coarse
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(3, 20, 30, generator=generator)
    windows = torch.tensor([[0, 0, 30, 20], [3, 4, 9, 17], [5, 5, 6, 6]])
    whole, part = (spatial_pyramid_pool(values, windows, which) for which in (levels, coarse))
    assert len(numbers) == bins(coarse)
    assert torch.equal(whole[:, numbers], part)


@torch.inference_mode()
def test_the_shortlist_is_the_windows_of_the_best_weighted_scores(image: Tensor) -> None:
    model, boxes = build(), some_boxes()
    boxes = torch.cat([boxes, boxes[:20] + 0.01])  # on the same cells as those before
    pyramid = model.feature_maps(image)
    ranks = model.shortlist(pyramid, boxes)
    windows, rows = pyramid.locate(boxes, "area", CONFIG.projection)
    values = pyramid.fine[0].values
    best = []
    for number, window in enumerate(windows[:, 1:]):
        pooled = spatial_pyramid_pool(values, window[None], (3, 1))
        scores = model.head.read_coarse(pooled).softmax(dim=1)[0, :-1].max()
        first = int((rows == number).nonzero()[0, 0])
        best.append(float(scores) / (1 + CONFIG.rank_prior * first / 1000))
    chosen = sorted(range(len(windows)), key=lambda i: -best[i])[: CONFIG.cascade]
    expected = [r for r in range(len(boxes)) if int(rows[r]) in chosen]
    assert ranks.tolist() == expected
    assert len(expected) > CONFIG.cascade, "windows that several boxes share"
    assert len(windows) > CONFIG.cascade


def test_detections_are_those_of_the_shortlist_at_their_ranks(image: Tensor) -> None:
    model, boxes = build(), some_boxes()
    found = model.predict(image, Proposals(boxes))
    with torch.inference_mode():
        pyramid = model.feature_maps(image)
        ranks = model.shortlist(pyramid, boxes)
        probabilities, deltas = model.score(pyramid, boxes[ranks])
        weighed = weigh_by_rank(probabilities, CONFIG.rank_prior, ranks)
        expected = select(boxes[ranks], weighed, deltas, (90, 150), CONFIG)
    assert len(found) > 3
    assert torch.equal(found.boxes, expected[0])
    assert torch.equal(found.scores, expected[1])
    everything = build(dataclasses.replace(CONFIG, cascade=1000)).predict(image, Proposals(boxes))
    assert not torch.equal(found.scores, everything.scores), "the cascade changed nothing"


def test_few_proposals_are_all_looked_at(image: Tensor) -> None:
    model, proposals = build(), Proposals(some_boxes(12))
    found = model.predict(image, proposals)
    model.config = dataclasses.replace(CONFIG, cascade=0)
    other = model.predict(image, proposals)
    assert len(found) > 0
    assert torch.equal(found.scores, other.scores)
    assert torch.equal(found.boxes, other.boxes)


def test_boxes_that_the_user_brings_are_all_scored_by_the_large_layers(image: Tensor) -> None:
    model, boxes = build(), some_boxes()
    one = model.predict_boxes(image, boxes).probabilities
    model.config = dataclasses.replace(CONFIG, cascade=0)
    assert torch.equal(model.predict_boxes(image, boxes).probabilities, one)


def test_the_rest_learns_nothing_from_the_small_classifier(image: Tensor) -> None:
    gradients = []
    models = [build(dataclasses.replace(CONFIG, cascade=cascade, dropout=0.0)) for cascade in (12, 0)]
    state = {k: v for k, v in models[0].state_dict().items() if not k.startswith("head.coarse")}
    models[1].load_state_dict(state)
    for model in models:
        maps = tuple(m.with_values(m.values.clone()) for m in model.extractor(image))
        boxes, labels = some_boxes(16), torch.arange(16) % 4
        losses = batch_losses(model.train(), [Regions(maps, boxes, labels, torch.zeros(16, 4))])
        (losses.classes + losses.boxes + losses.coarse).backward()
        gradients.append({name: p.grad for name, p in model.learned_parameters().items()})
    with_cascade, without = gradients
    own = {name for name in with_cascade if name.startswith("head.coarse")}
    assert with_cascade.keys() - without.keys() == own != set()
    assert all(with_cascade[name] is not None and bool(with_cascade[name].any()) for name in own)
    for name, gradient in without.items():
        assert torch.equal(with_cascade[name], gradient), name


def test_a_pyramid_of_one_level_and_no_cascade_have_no_small_classifier() -> None:
    assert build(dataclasses.replace(CONFIG, levels=(3,))).head.coarse is None
    head = build(dataclasses.replace(CONFIG, cascade=0)).head
    assert head.coarse is None
    with pytest.raises(ValueError, match="expected a head with a cascade, got one without"):
        head.read_coarse(torch.zeros(1, 10, 8))
    with pytest.raises(ValueError, match="expected cascade of at least 0, got -1"):
        dataclasses.replace(CONFIG, cascade=-1)


def test_a_checkpoint_keeps_the_small_classifier(tmp_path: Path, image: Tensor) -> None:
    config = dataclasses.replace(SMALL, cascade=9)
    one = small_model(config)
    save_detector(one, tmp_path / "model.safetensors")
    other = load_detector(tmp_path / "model.safetensors", engine="eager")
    assert other.config == config
    rounded = {name: value.half().float() for name, value in one.learned_state().items()}
    assert any(name.startswith("head.coarse") for name in rounded)
    assert all(torch.equal(value, rounded[name]) for name, value in other.learned_state().items())
    one.load_state_dict(rounded, strict=False)
    found, again = (model.predict(image, Proposals(some_boxes())) for model in (one, other))
    assert len(found) > 3
    assert torch.equal(found.scores, again.scores)
    assert torch.equal(found.boxes, again.boxes)


LEVELS = st.lists(st.sampled_from([1, 2, 3, 4, 6, 12]), min_size=2, max_size=5).map(tuple)


@given(levels=LEVELS)
def test_the_numbers_of_the_coarse_bins_are_counted_level_by_level(levels: tuple[int, ...]) -> None:
    """Name every bin of the pooled vector by its level, in order, and keep those of levels that the second divides."""
    owners = [(i, n) for i, n in enumerate(levels) for _ in range(n) for _ in range(n)]
    found, numbers = coarse_part(levels)
    assert found == tuple(n for n in levels[1:] if levels[1] / n == levels[1] // n)
    assert numbers == [b for b, (i, n) in enumerate(owners) if i > 0 and levels[1] % n == 0]


def plain_coarse(model: SPPNet, window: Tensor) -> Tensor:
    """Classify one window (C, h, w) by its 3 x 3 and 1 x 1 bins, with PyTorch."""
    norm, (first, _, last) = model.head.norm, model.head.coarse
    pooled = torch.cat([F.adaptive_max_pool2d(window, n).flatten(1) for n in (3, 1)], dim=1).T
    deviation, mean = torch.std_mean(pooled, dim=1, correction=0, keepdim=True)
    standard = (pooled - mean) / (deviation**2 + 1e-5).sqrt() * norm.weight + norm.bias
    hidden = (first.weight @ standard.flatten() + first.bias).relu()
    return (last.weight @ hidden + last.bias).softmax(dim=0)


@pytest.mark.parametrize("scales", [(), (60, 900)])
@torch.inference_mode()
def test_the_shortlist_is_that_of_a_plain_computation(scales: tuple[int, ...], image: Tensor) -> None:
    """Score region by region with PyTorch alone; regions of a kept window are all kept, in ascending order."""
    model, boxes = build(dataclasses.replace(CONFIG, scales=scales, rank_prior=200.0)), some_boxes()
    boxes = torch.cat([boxes, boxes[:20] + 0.01])  # on the same cells as those before
    pyramid = model.feature_maps(image)
    best: dict[tuple[int, ...], float] = {}
    cells = []
    levels = choose_levels(boxes, pyramid, "area").tolist()
    for rank, (box, level) in enumerate(zip(boxes, levels, strict=True)):
        x1, y1, x2, y2 = project(box[None], pyramid.fine[level], CONFIG.projection)[0].tolist()
        cells.append((level, x1, y1, x2, y2))
        score = float(plain_coarse(model, pyramid.fine[level].values[:, y1:y2, x1:x2])[:-1].max()) / (1 + rank / 5)
        best[cells[-1]] = max(score, best.get(cells[-1], 0.0))
    ordered = sorted(best.values(), reverse=True)
    assert ordered[CONFIG.cascade - 1] - ordered[CONFIG.cascade] > 1e-5, "too close to tell"
    kept = {window for window in best if best[window] >= ordered[CONFIG.cascade - 1]}
    assert len(set(levels)) == max(1, len(scales))
    assert model.shortlist(pyramid, boxes).tolist() == [r for r, window in enumerate(cells) if window in kept]


@pytest.mark.parametrize("cascade", [60, 61, 59])
def test_a_cascade_that_keeps_every_window_changes_nothing(cascade: int, image: Tensor) -> None:
    """Give 60 boxes of which two pairs lie on the same cells: 58 windows, all of them kept."""
    boxes = distinct(build(), some_boxes(200), image)[:58]
    boxes = torch.cat([boxes, boxes[:2]])
    model = build(dataclasses.replace(CONFIG, cascade=cascade))
    found = model.predict(image, Proposals(boxes))
    model.config = dataclasses.replace(CONFIG, cascade=0)
    other = model.predict(image, Proposals(boxes))
    assert len(found) > 3
    assert torch.equal(found.boxes, other.boxes)
    assert torch.equal(found.scores, other.scores)
    assert torch.equal(found.labels, other.labels)


def distinct(model: SPPNet, boxes: Tensor, image: Tensor) -> Tensor:
    """Return the boxes that lie on other cells than those before them."""
    rows = model.feature_maps(image).locate(boxes, "area", CONFIG.projection)[1].tolist()
    return boxes[[r for r, row in enumerate(rows) if row not in rows[:r]]]


def test_the_large_layers_see_the_shortlist_only(image: Tensor) -> None:
    model, seen = build(), []
    model.head.fc6.register_forward_hook(lambda layer, inputs, output: seen.append(len(output)))
    model.predict(image, Proposals(some_boxes()))
    model.predict_boxes(image, distinct(model, some_boxes(), image))
    assert seen[0] == CONFIG.cascade
    assert seen[1] > 2 * CONFIG.cascade


@dataclasses.dataclass
class OneBatch:
    """Give one batch to learn from, of one image."""

    part: Regions
    steps: int = 1
    per_epoch: float = 1.0

    def first_maps(self, count: int) -> list[tuple[FeatureMap, ...]]:
        return [self.part.maps]

    def iterate(self, step: int) -> Iterator[list[Regions]]:
        yield from [[self.part]] * (self.steps - step)


def test_the_reported_loss_is_that_of_the_large_layers(image: Tensor, tmp_path: Path) -> None:
    """Compare with plain cross entropy; products are rounded to bfloat16 in training where that is fast."""
    config = dataclasses.replace(CONFIG, dropout=0.0, box_weight=3.0)
    model, reports = build(config), []
    maps = tuple(m.with_values(m.values.clone()) for m in model.extractor(image))
    part = Regions(maps, some_boxes(16), torch.arange(16) % 4, torch.full((16, 4), 0.5))
    model.reduction.measure([maps])
    losses = batch_losses(model, [part])
    assert float(losses.coarse.detach()) > 0.2
    logits, _ = model.head(*model.pool_regions(maps, part.boxes))
    before = model.head.coarse[0].weight.detach().clone()
    train(Run(model, tmp_path, "one"), OneBatch(part), lambda metrics, _: reports.append(metrics))
    assert reports[0].class_loss == pytest.approx(float(F.cross_entropy(logits, part.labels).detach()), rel=0.02)
    assert reports[0].loss == pytest.approx(reports[0].class_loss + 3 * reports[0].box_loss)
    assert not torch.equal(model.head.coarse[0].weight, before), "it does not learn"
