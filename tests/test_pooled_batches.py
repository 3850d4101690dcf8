"""Check batches of pooled regions: what a mini-batch is made of, and where and on which scale it is pooled."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from detector.batches import PooledBatches, PooledRegions, Regions, draw_regions
from detector.boxes import project
from detector.config import Config
from detector.datasets import Sample
from detector.images import read_image
from detector.reduced import ReducedCaches
from detector.sampling import mirror
from detector.scales import FeaturePyramid
from detector.sppnet import SPPNet
from detector.structures import FeatureMap
from tests.noise import HEIGHT, SCALES, WIDTH, GivenProposals, photos, reduced, settings
from tests.sources import REPOSITORY
from tests.toy import small_model, tiny_trunk

PAPER = settings("paper", "epochs=20")  # 20 mini-batches of 4 photos
Source = tuple[tuple[Sample, ...], ReducedCaches]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return reduced(tmp_path_factory.mktemp("noise"), PAPER)


def net_of(config: Config) -> SPPNet:
    return small_model(config, trunk=tiny_trunk(2))


def drawn(source: Source, config: Config, steps: int) -> Iterator[tuple[Sample, Regions, PooledRegions]]:
    """Give the shares of the first steps, and the regions that the same key draws for whole maps."""
    samples, caches = source
    batches = PooledBatches(samples, caches, net_of(config))
    for step, batch in zip(range(steps), batches.iterate(0), strict=False):
        assert len(batch) == 4
        for place, (index, share) in enumerate(zip(batches.images(step), batch, strict=True)):
            pyramid, boxes = caches.read(samples[index])
            key = (config.seed * 1_000_003 + step, place, 3)
            assert isinstance(share, PooledRegions)
            yield samples[index], draw_regions(pyramid.fine, boxes, samples[index].truth, config, key), share


def pooled_by_torch(fine: FeatureMap, boxes: Tensor, config: Config) -> Tensor:
    """Pool boxes, one by one, by PyTorch's adaptive pooling: (R, bins, C)."""
    rows = []
    for x1, y1, x2, y2 in project(boxes, fine, config.projection).tolist():
        window = fine.values[:, y1:y2, x1:x2]
        rows.append(torch.cat([F.adaptive_max_pool2d(window, n).flatten(1) for n in config.levels], dim=1).T)
    return torch.stack(rows)


def overlap(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def is_mirrored(boxes: Tensor, proposals: Tensor, objects: Tensor) -> bool:
    """Tell whether boxes are the mirrored ones of a photo; they must be wholly one or the other."""
    known = torch.cat([proposals, objects])
    plain, turned = (
        bool(((boxes[:, None] - one[None]).abs().amax(dim=2) < 1e-3).any(dim=1).all())
        for one in (known, mirror(known, WIDTH))
    )
    assert plain != turned
    return turned


@pytest.mark.parametrize("name", ["paper", "code"])
def test_a_mini_batch_is_what_the_paper_and_the_code_say(source: Source, name: str) -> None:
    """Count 128 windows, 32 of them positive, with IoU in [0.5, 1] and [0.1, 0.5); half of the photos are mirrored."""
    mirrored, shares = 0, list(drawn(source, settings(name, "epochs=20"), 20))
    assert len(shares) == 80
    for sample, regions, share in shares:
        assert torch.equal(share.labels, regions.labels)
        assert torch.equal(share.targets, regions.targets)
        assert len(share.labels) == len(share.pooled) == 32  # of 128
        turned = is_mirrored(regions.boxes, source[1].read(sample)[1], sample.truth.boxes)
        mirrored += turned
        objects = mirror(sample.truth.boxes, WIDTH) if turned else sample.truth.boxes
        positives = 0
        for box, label in zip(regions.boxes.tolist(), share.labels.tolist(), strict=True):
            ious = {k: overlap(box, o) for k, o in zip(sample.truth.labels.tolist(), objects.tolist(), strict=True)}
            if label < 3:
                positives += 1
                assert 0.5 <= ious[label] <= 1 + 1e-6
            else:
                assert 0.1 <= max(ious.values()) < 0.5
        assert positives == 8
    assert 22 <= mirrored <= 58  # four standard deviations around 40 of 80


def test_where_positives_are_few_negatives_fill_the_batch(tmp_path: Path) -> None:
    """Give photos whose only positives are their two objects, and one that lacks negatives, too."""
    samples, caches = reduced(tmp_path, PAPER)
    few = {}
    for sample in samples:
        boxes = caches.read(sample)[1]
        best = torch.tensor([max(overlap(b, o) for o in sample.truth.boxes.tolist()) for b in boxes.tolist()])
        few[sample.image_id] = boxes[(best >= 0.1) & (best < 0.5)][: 20 if sample is samples[0] else None]
        assert len(few[sample.image_id]) >= (20 if sample is samples[0] else 30)
    for sample, _, share in drawn((samples, replace(caches, proposals=GivenProposals(few, tmp_path))), PAPER, 3):
        assert int((share.labels < 3).sum()) == 2
        assert len(share.labels) == (22 if sample is samples[0] else 32)


@pytest.mark.parametrize("random", ["true", "false"])
def test_regions_are_pooled_as_by_torch_mirrored_too(source: Source, random: str) -> None:
    """Find the scale of each region by comparing it with all three; the rule has the largest for all of this size."""
    config = settings("paper", "epochs=3", f"random_scale={random}")
    used, turned = torch.zeros(3), 0
    for sample, regions, share in drawn(source, config, 3):
        turned += is_mirrored(regions.boxes, source[1].read(sample)[1], sample.truth.boxes)
        parts = [pooled_by_torch(fine, regions.boxes, config) for fine in regions.maps]
        equal = torch.stack([(part == share.pooled).flatten(1).all(dim=1) for part in parts])
        assert bool(equal.any(dim=0).all() if random == "true" else equal[2].all())
        used += equal.sum(dim=1)
    assert 0 < turned < 12
    assert random == "false" or bool((used > 0).all())


def test_at_one_scale_a_region_is_what_the_detector_reads_of_it(source: Source, tmp_path: Path) -> None:
    """Compare with the layers of the detector on the photo, rounded to float16: a maximum keeps rounded values."""
    config = settings("code", "scales=[]", "shorter=96", "epochs=2", "flip=false")
    net, one = net_of(config), reduced(tmp_path, config)
    for sample, regions, share in drawn(one, config, 2):
        with torch.inference_mode():
            pooled, context = net.pool_regions(net.extractor(read_image(sample.path)), regions.boxes)
        assert torch.equal(share.pooled, pooled.half().float())
        read, none = share.pool(net)
        assert torch.equal(read, share.pooled)
        assert none.shape == context.shape == (32, 0)
        assert not share.pooled.is_inference()  # or no layer could learn from it


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """Give maps of photos that are 1 everywhere at the first scale, 2 at the second, ..."""

    sizes: tuple[int, ...]
    boxes: Tensor

    def read(self, sample: Sample) -> tuple[FeaturePyramid, Tensor]:
        maps = []
        for level, side in enumerate(self.sizes, 1):
            scale = side / HEIGHT
            shape = (8, -(-side // 16), -(-round(WIDTH * scale) // 16))
            maps.append(FeatureMap(torch.full(shape, float(level)), 16, 7.5, (scale, scale)))
        return FeaturePyramid(tuple(maps), (), (HEIGHT, WIDTH)), self.boxes


FIVE = (480, 576, 688, 864, 1200)


def levels_of(tmp_path: Path, *overrides: str) -> tuple[PooledBatches, Tensor, Tensor]:
    """Return batches at the paper's five scales; of 30 mini-batches, each region's scale and its box's area."""
    samples, proposals = photos(tmp_path, jitter=0.2)
    config = settings("paper", f"scales={list(FIVE)}", "epochs=30", *overrides)
    batches = PooledBatches(samples, Steps(FIVE, proposals.boxes["0"]), net_of(config))  # type: ignore[arg-type]
    levels, areas = [], []
    for step, batch in enumerate(batches.iterate(0)):
        for place, (index, share) in enumerate(zip(batches.images(step), batch, strict=True)):
            assert isinstance(share, PooledRegions)
            assert bool((share.pooled == share.pooled[:, :1, :1]).all())  # from one map alone
            levels.append(share.pooled[:, 0, 0].long() - 1)
            pyramid, boxes = batches.caches.read(samples[index])
            found = draw_regions(pyramid.fine, boxes, samples[index].truth, config, (step, place, 3)).boxes
            areas.append((found[:, 2:].double() - found[:, :2].double()).prod(dim=1))
    return batches, torch.cat(levels), torch.cat(areas)


def test_random_scales_are_uniform_whatever_the_size_of_a_region(tmp_path: Path) -> None:
    _, levels, areas = levels_of(tmp_path)
    total = 30 * 4 * 32
    assert len(levels) == total
    small = areas < areas.median()
    for part in (torch.ones_like(small), small, ~small):
        counts = torch.bincount(levels[part], minlength=5).double()
        expected, deviation = len(levels[part]) / 5, (len(levels[part]) * 0.2 * 0.8) ** 0.5
        assert float((counts - expected).abs().max()) < 4 * deviation
    pairs = torch.bincount(levels[:-1] * 5 + levels[1:], minlength=25).double()  # neighbours know nothing of each other
    assert float((pairs - total / 25).abs().max()) < 4 * (total / 25 * 24 / 25) ** 0.5


def test_without_random_scales_the_rule_chooses(tmp_path: Path) -> None:
    """Find by hand the scale at which a box has an area nearest to 224 x 224."""
    _, levels, areas = levels_of(tmp_path, "random_scale=false")
    for level, area in zip(levels.tolist(), areas.tolist(), strict=True):
        distances = [abs(area * (side / HEIGHT) ** 2 - 224**2) for side in FIVE]
        assert distances[level] == min(distances)
    assert len(levels.unique()) > 1


def test_a_draw_depends_on_its_key_alone(source: Source) -> None:
    samples, caches = source
    batches = PooledBatches(samples, caches, net_of(PAPER))
    first, again = (batches.draw(samples[0], (5, 1, 3)) for _ in range(2))
    assert torch.equal(first.pooled, again.pooled)
    for key in ((5, 2, 3), (6, 1, 3)):
        assert not torch.equal(batches.draw(samples[0], key).pooled, first.pooled)
    later = list(batches.iterate(17))
    for ours, theirs in zip(later, list(batches.iterate(0))[17:], strict=True):
        assert all(torch.equal(a.pooled, b.pooled) for a, b in zip(ours, theirs, strict=True))  # type: ignore[attr-defined]
    fixed = PooledBatches(samples, caches, net_of(replace(PAPER, random_scale=False))).draw(samples[0], (5, 1, 3))
    assert torch.equal(fixed.targets, first.targets)  # scales are drawn apart from regions
    assert len(batches.maps(samples[0])) == len(SCALES)


@pytest.mark.slow
def test_batches_are_drawn_with_any_threading_layer(tmp_path: Path) -> None:
    """Run with the layer of numba that aborts the process if two threads start parallel work at the same time."""
    program = (
        "import numba, torch; from pathlib import Path; from detector.batches import PooledBatches\n"
        "from tests.test_pooled_batches import PAPER, net_of, reduced\n"
        "torch.set_num_threads(2)\n"
        f"samples, caches = reduced(Path({str(tmp_path)!r}), PAPER)\n"
        "print(len(list(PooledBatches(samples, caches, net_of(PAPER)).iterate(0))), numba.threading_layer())"
    )
    chosen = {"NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "2"}
    environment = {**os.environ, **chosen}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split()) == (0, ["20", "workqueue"]), done.stderr
