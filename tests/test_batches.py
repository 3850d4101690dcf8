"""Check that a batch depends on the seed and its number alone, and that mirroring keeps maps, boxes and targets one."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from detector.batches import Batches, Regions, draw_regions, repeat_factors
from detector.boxes import coverage, decode
from detector.datasets import Sample
from detector.preparation import Caches, prepare
from detector.sampling import candidates
from detector.structures import FeatureMap, GroundTruth
from detector.training import batch_losses
from tests.toy import CLASSES, SMALL, make_caches, small_model, tiny_trunk, toy_samples

K = len(CLASSES)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Caches:
    """Return filled caches of the six toy training images."""
    filled = make_caches(tmp_path_factory.mktemp("caches"), small_model(trunk=tiny_trunk()))
    prepare(toy_samples(), filled, 1, lambda _: None)
    return filled


def equal(a: list[Regions], b: list[Regions]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.boxes, y.boxes)
        and torch.equal(x.labels, y.labels)
        and torch.equal(x.targets, y.targets)
        and all(torch.equal(m.values, n.values) and m.offset == n.offset for m, n in zip(x.maps, y.maps, strict=True))
        for x, y in zip(a, b, strict=True)
    )


def test_an_epoch_shows_every_image_once_in_its_own_order(caches: Caches) -> None:
    batches = Batches(toy_samples(), caches, replace(SMALL, images_per_batch=2), K)
    assert (batches.per_epoch, batches.steps) == (3, 9)
    epochs = [[i for step in range(3 * e, 3 * e + 3) for i in batches.images(step)] for e in range(3)]
    assert all(sorted(order) == list(range(6)) for order in epochs)
    assert len({tuple(order) for order in epochs}) == 3


def shows(*images: list[int]) -> list[Sample]:
    """Return samples without files that show these labels."""
    truths = [
        GroundTruth(torch.rand(len(i), 4), torch.tensor(i, dtype=torch.int64), torch.zeros(len(i)).bool(), (9, 12))
        for i in images
    ]
    return [replace(toy_samples()[0], image_id=str(n), truth=truth) for n, truth in enumerate(truths)]


def test_repeat_factors_by_hand() -> None:
    """Show class 0 in every image but one, class 1 in two of eight, twice in one, class 2 in one, class 3 in none."""
    samples = shows([0], [0, 1, 1], [0], [0, 1], [0, 0], [0, 2], [0], [])
    two, one = (0.5 / (2 / 8)) ** 0.5, (0.5 / (1 / 8)) ** 0.5
    assert repeat_factors(samples, 4, 0.5).tolist() == pytest.approx([1, two, 1, two, 1, one, 1, 1])
    assert repeat_factors(samples, 4, 0.2).tolist() == pytest.approx([1, 1, 1, 1, 1, (0.2 * 8) ** 0.5, 1, 1])
    assert repeat_factors(samples, 4, 0.0).tolist() == [1] * 8
    assert repeat_factors(samples, 4, 1.0)[0] == pytest.approx((8 / 7) ** 0.5)


def test_rare_images_are_shown_more_often_in_epochs_of_the_same_length(caches: Caches) -> None:
    """Show class 1 in one image of 20: with a factor of sqrt(0.8 x 20) = 4 it is 4 of the 23 that an epoch draws from.

    The other 19 have class 0 alone, whose factor is 1, and an epoch has 20 places.
    """
    samples = shows(*[[0]] * 7, [0, 1], *[[0]] * 12)
    config = replace(SMALL, images_per_batch=2, epochs=60, repeat_below=0.8)
    batches = Batches(samples, caches, config, K)
    assert (batches.per_epoch, batches.steps) == (10, 600)
    epochs = [[i for step in range(10 * e, 10 * e + 10) for i in batches.images(step)] for e in range(60)]
    assert {len(images) for images in epochs} == {20}
    assert max(images.count(i) for images in epochs for i in range(20) if i != 7) == 1
    assert max(images.count(7) for images in epochs) == 4
    # Of 23, 20 are drawn: 4 x 20 / 23 = 3.48 a time on average, 0.62 the deviation, sqrt(60) less of their mean
    assert sum(images.count(7) for images in epochs) / 60 == pytest.approx(80 / 23, abs=5 * 0.62 / 60**0.5)
    assert {i for images in epochs for i in images} == set(range(20))


def test_how_often_an_image_is_shown_is_rounded_up_or_down_by_chance(caches: Caches) -> None:
    samples = shows(*[[0]] * 15, [0, 1], [0, 1], *[[0]] * 3)
    config = replace(SMALL, images_per_batch=1, epochs=200, repeat_below=0.225)  # a factor of 1.5
    batches = Batches(samples, caches, config, K)
    assert batches.factors[15:17].tolist() == pytest.approx([1.5, 1.5])
    counts = [sum(batches.images(step) == [15] for step in range(20 * e, 20 * e + 20)) for e in range(200)]
    assert set(counts) == {0, 1, 2}
    # It has two copies in half of the epochs; both are among the 20 shown of 21 or 22 in 90 or 82 % of these
    assert counts.count(2) / 200 == pytest.approx(0.432, abs=5 * (0.432 * 0.568 / 200) ** 0.5)


def test_repeated_images_depend_on_the_seed_and_the_step_alone(caches: Caches) -> None:
    samples = shows(*[[0]] * 7, [0, 1], *[[0]] * 12)
    config = replace(SMALL, epochs=5, repeat_below=0.8)
    batches = [Batches(samples, caches, c, K) for c in (config, config, replace(config, seed=1))]
    steps = range(batches[0].steps)
    first = [batches[0].images(step) for step in steps]
    assert [batches[1].images(step) for step in reversed(steps)] == first[::-1]
    assert [batches[2].images(step) for step in steps] != first


def test_images_that_do_not_fill_a_batch_wait(caches: Caches) -> None:
    batches = Batches(toy_samples(), caches, replace(SMALL, images_per_batch=4, epochs=30), K)
    assert batches.per_epoch == 1
    chosen = [batches.images(step) for step in range(30)]
    assert {len(set(images)) for images in chosen} == {4}
    assert set(itertools.chain(*chosen)) == set(range(6))
    few = Batches(toy_samples()[:2], caches, replace(SMALL, images_per_batch=4), K)
    assert (few.per_epoch, sorted(few.images(0))) == (1, [0, 1])
    assert len(list(few.iterate(0))) == SMALL.epochs


def test_a_batch_depends_on_the_seed_and_its_number_alone(caches: Caches) -> None:
    everything = list(Batches(toy_samples(), caches, SMALL, K).iterate(0))
    assert len(everything) == 9
    for start in (1, 5, 8, 9):
        rest = list(Batches(toy_samples(), caches, SMALL, K).iterate(start))
        assert len(rest) == 9 - start
        assert all(equal(a, b) for a, b in zip(rest, everything[start:], strict=True))
    other = list(Batches(toy_samples(), caches, replace(SMALL, seed=1), K).iterate(0))
    assert not any(equal(a, b) for a, b in zip(other, everything, strict=True))
    assert not any(equal(a, b) for a, b in itertools.combinations(everything, 2))


def test_reading_ahead_ends_with_its_reader(caches: Caches) -> None:
    before = threading.active_count()
    batches = Batches(toy_samples(), caches, SMALL, K).iterate(0)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_what_is_sampled_is_labelled_by_its_overlap(caches: Caches) -> None:
    """Recompute labels from the truth: IoU >= 0.5 takes the object's class, else it is background."""
    batches = Batches(toy_samples(), caches, replace(SMALL, flip=False), K)
    for step, batch in enumerate(batches.iterate(0)):
        for index, part in zip(batches.images(step), batch, strict=True):
            truth = toy_samples()[index].truth
            assert len(part.boxes) <= SMALL.regions_per_image
            best, match = box_iou(part.boxes, truth.boxes).max(dim=1)
            assert torch.equal(part.labels, torch.where(best >= 0.5, truth.labels[match], torch.tensor(K)))
            positive = part.labels < K
            assert 0 < int(positive.sum()) <= round(SMALL.regions_per_image * SMALL.positive_fraction)
            landed = decode(part.boxes[positive], part.targets[positive])
            assert torch.allclose(landed, truth.boxes[match[positive]], atol=1e-2)
            assert part.targets[~positive].abs().max() == 0
            assert all(m.values.dtype == torch.float32 for m in part.maps)


class Recorder(nn.Module):
    """Stand where the head stands and keep what it is given: (R, bins, C), and means (R, C) as context."""

    def __init__(self) -> None:
        super().__init__()
        self.pooled, self.context = torch.empty(0), torch.empty(0)
        self.coarse = None

    def read_context(self, coarse: FeatureMap, fine: FeatureMap, windows: Tensor) -> Tensor:
        return coverage(windows, fine, coarse).float() @ coarse.values.flatten(1).T

    def forward(self, pooled: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        self.pooled, self.context = pooled.detach(), context.detach()
        return pooled.new_zeros(len(pooled), K + 1), pooled.new_zeros(len(pooled), K, 4)


def mirrored_bins(pooled: Tensor) -> Tensor:
    """Reverse the columns of every level of (R, bins, C)."""
    parts = pooled.split([n * n for n in SMALL.levels], dim=1)
    squares = [p.unflatten(1, (n, n)).flip(2).flatten(1, 2) for p, n in zip(parts, SMALL.levels, strict=True)]
    return torch.cat(squares, dim=1)


def rows(pooled: Tensor, context: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    return torch.cat([pooled.flatten(1), context, labels[:, None].float(), targets], dim=1)


def among(part: Tensor, whole: Tensor) -> bool:
    """Tell whether every row of `part` is a row of `whole`, up to rounding."""
    distances = torch.cdist(part, whole, compute_mode="donot_use_mm_for_euclid_dist")
    return bool((distances.min(dim=1).values < 1e-3).all())


def test_a_mirrored_image_gives_the_mirror_of_its_regions() -> None:
    """Compare what the head sees of mirrored images with the original's regions: columns reversed, tx negated."""
    size, model = (134, 205), small_model(trunk=tiny_trunk(2))
    model.head = recorder = Recorder()
    generator = torch.Generator().manual_seed(1)
    # 19 x 8 pixels are wider than the resized image of 147: the last cells lie in the padding
    scale = (96 / size[0], 147 / size[1])
    maps = (
        FeatureMap(torch.rand(5, 12, 19, generator=generator), 8, 3.5, scale),
        FeatureMap(torch.rand(7, 6, 10, generator=generator), 16, 7.5, scale),
    )
    corners = torch.rand(60, 2, 2, generator=generator).sort(dim=1).values
    boxes = (corners * torch.tensor([size[1], size[0]])).flatten(1)
    boxes = boxes[((boxes[:, 2:] - boxes[:, :2]) > 3).all(dim=1)]
    truth = GroundTruth(boxes[:4] + 2, torch.tensor([0, 2, 1, 1]), torch.zeros(4, dtype=torch.bool), size)
    config = replace(SMALL, regions_per_image=30, negative_iou=(0.0, 0.5))
    everything = candidates(boxes, truth, K, config)
    batch_losses(model, [Regions(maps, everything.boxes, everything.labels, everything.targets)])
    context = recorder.context
    assert float(context.std(dim=0).min()) > 0.01
    straight = rows(recorder.pooled, context, everything.labels, everything.targets)
    sign = torch.tensor([-1.0, 1.0, 1.0, 1.0])
    turned = rows(mirrored_bins(recorder.pooled), context, everything.labels, everything.targets * sign)
    found = []
    for seed in range(12):
        part = draw_regions(maps, boxes, truth, config, (seed, 0, K))
        batch_losses(model, [part])
        seen = rows(recorder.pooled, recorder.context, part.labels, part.targets)
        assert len(seen) > 20
        assert among(seen, straight) or among(seen, turned), f"seed {seed}"
        found.append(among(seen, turned))
    assert not among(turned, straight)
    assert 2 <= sum(found) <= 10
