"""Check which regions may teach, what they teach, and how many of each are drawn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from detector.boxes import encode
from detector.config import Config
from detector.sampling import Candidates, candidates, mirror, sample
from detector.structures import GroundTruth

BACKGROUND = 20
CONFIG = Config(positive_iou=0.5, negative_iou=(0.1, 0.5), positive_fraction=0.25, regions_per_image=64)


def truth(boxes: list[list[float]], labels: list[int], difficult: list[bool]) -> GroundTruth:
    return GroundTruth(
        torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(difficult, dtype=torch.bool),
        (300, 500),
    )


def random_boxes(count: int, generator: torch.Generator) -> Tensor:
    low = torch.rand(count, 2, generator=generator) * torch.tensor([300.0, 180.0])
    side = 10 + torch.rand(count, 2, generator=generator) * 110
    return torch.cat([low, low + side], dim=1)


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def numbers(rows: Tensor) -> set[int]:
    return {int(row) for row in rows}


@given(st.integers(0, 2**31), st.integers(0, 5))
def test_every_region_is_labelled_by_its_overlap(seed: int, objects: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    given_truth = GroundTruth(
        random_boxes(objects, generator),
        torch.randint(0, BACKGROUND, (objects,), generator=generator),
        torch.rand(objects, generator=generator) < 0.4,
        (300, 500),
    )
    proposals = random_boxes(60, generator)
    rows = candidates(proposals, given_truth, BACKGROUND, CONFIG)
    sure = [i for i in range(objects) if not given_truth.difficult[i]]
    boxes = [given_truth.boxes[i].tolist() for i in sure] + proposals.tolist()
    assert rows.boxes.tolist() == boxes
    in_range = []
    for r, box in enumerate(boxes):
        overlaps = [iou(box, other) for other in given_truth.boxes.tolist()]
        best = max(((overlaps[i], -i) for i in sure), default=(0.0, 0))
        largest = max(overlaps, default=0.0)
        assert (r in numbers(rows.positives)) == (best[0] >= 0.5)
        if best[0] >= 0.5:
            assert int(rows.labels[r]) == int(given_truth.labels[-best[1]])
            expected = encode(rows.boxes[r : r + 1], given_truth.boxes[-best[1]][None])[0]
            torch.testing.assert_close(rows.targets[r], expected)
        else:
            assert int(rows.labels[r]) == BACKGROUND
            assert not bool(rows.targets[r].any())
            in_range += [r] if 0.1 <= largest < 0.5 else []
    if in_range:
        assert numbers(rows.negatives) == set(in_range)


def test_the_limits_of_iou_belong_to_the_upper_range() -> None:
    """Cut an object's box to exactly half, and to exactly a tenth, of its area."""
    whole = [0.0, 0.0, 100.0, 40.0]
    boxes = torch.tensor([[0, 0, 50, 40], [0, 0, 49, 40], [0, 0, 10, 40], [0, 0, 9, 40]], dtype=torch.float32)
    config = Config(positive_iou=0.5, negative_iou=(0.1, 0.5))
    overlap = box_iou(boxes, torch.tensor([whole]))[:, 0]
    assert [bool(v) for v in overlap >= torch.tensor([0.5, 0.5, 0.1, 0.1])] == [True, False, True, False]
    rows = candidates(boxes, truth([whole], [3], [False]), BACKGROUND, config)
    assert rows.positives.tolist() == [0, 1]
    assert rows.negatives.tolist() == [2, 3]


def test_difficult_objects_are_neither_taught_nor_background() -> None:
    hard, sure = [200.0, 100.0, 300.0, 200.0], [10.0, 10.0, 60.0, 90.0]
    proposals = torch.tensor(
        [hard, [205.0, 100, 300, 200], [150.0, 100, 260, 180], [10.0, 10, 60, 60], [0.0, 200, 9, 209]]
    )
    rows = candidates(proposals, truth([hard, sure], [4, 7], [True, False]), BACKGROUND, CONFIG)
    assert rows.boxes[0].tolist() == sure, "the difficult object is among the regions by itself"
    assert numbers(rows.positives) == {0, 4}
    assert rows.labels.tolist() == [7, BACKGROUND, BACKGROUND, BACKGROUND, 7, BACKGROUND]
    assert numbers(rows.negatives) == {3}, "regions 1 and 2 lie on the difficult object, region 5 on nothing"


def test_only_difficult_objects_leave_only_background() -> None:
    hard = [200.0, 100.0, 300.0, 200.0]
    proposals = torch.tensor([hard, [150.0, 100, 260, 180], [0.0, 0, 20, 20]])
    rows = candidates(proposals, truth([hard], [4], [True]), BACKGROUND, CONFIG)
    assert len(rows.positives) == 0
    assert numbers(rows.negatives) == {1}
    assert rows.labels.tolist() == [BACKGROUND] * 3


def test_an_image_without_near_misses_lends_regions_far_from_objects() -> None:
    proposals = torch.tensor([[0.0, 0, 20, 20], [300.0, 200, 350, 280]])
    rows = candidates(proposals, truth([[100.0, 100, 150, 150]], [2], [False]), BACKGROUND, CONFIG)
    assert numbers(rows.negatives) == {1, 2}
    nothing = candidates(proposals, truth([], [], []), BACKGROUND, CONFIG)
    assert (numbers(nothing.negatives), len(nothing.positives)) == ({0, 1}, 0)


def test_no_proposals() -> None:
    rows = candidates(torch.zeros(0, 4), truth([[100.0, 100, 150, 150]], [2], [False]), BACKGROUND, CONFIG)
    assert (numbers(rows.positives), len(rows.negatives)) == ({0}, 0)
    none = candidates(torch.zeros(0, 4), truth([], [], []), BACKGROUND, CONFIG)
    assert len(none.boxes) == len(sample(none, CONFIG, torch.Generator())) == 0


def rows_of(positives: int, negatives: int) -> Candidates:
    count = positives + negatives
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    empty = torch.zeros(count, 4)
    labels = torch.full((count,), BACKGROUND)
    return Candidates(empty, labels, empty, order[:positives].sort().values, order[positives:].sort().values)


@pytest.mark.parametrize("positives", [0, 1, 15, 16, 17, 500])
@pytest.mark.parametrize("negatives", [0, 3, 48, 2000])
def test_at_most_a_quarter_is_positive(positives: int, negatives: int, generator: torch.Generator) -> None:
    rows = rows_of(positives, negatives)
    drawn = sample(rows, CONFIG, generator).tolist()
    of_objects = [r for r in drawn if r in numbers(rows.positives)]
    assert len(of_objects) == min(positives, 16)
    assert len(drawn) - len(of_objects) == min(negatives, 64 - len(of_objects))
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= numbers(rows.positives) | numbers(rows.negatives)


@pytest.mark.parametrize(("count", "fraction", "positive"), [(2, 0.25, 1), (2, 0.0, 0), (3, 0.1, 1), (6, 0.25, 2)])
def test_however_few_regions_are_drawn_one_is_positive(count: int, fraction: float, positive: int) -> None:
    config = Config(regions_per_image=count, positive_fraction=fraction)
    for seed in range(5):
        rows, generator = rows_of(9, 30), torch.Generator().manual_seed(seed)
        drawn = sample(rows, config, generator)
        assert len(drawn) == count
        assert len(numbers(drawn) & numbers(rows.positives)) == positive
    assert len(sample(rows_of(0, 30), config, generator)) == count


def test_the_draw_depends_on_the_generator_alone() -> None:
    rows = rows_of(100, 1000)
    draws = []
    for seed in (7, 7, 8):
        torch.manual_seed(len(draws))
        draws.append(sample(rows, CONFIG, torch.Generator().manual_seed(seed)).tolist())
    assert draws[0] == draws[1]
    assert set(draws[0]) != set(draws[2])


def test_every_region_is_drawn_as_often_as_any_other() -> None:
    rows = rows_of(40, 200)
    generator = torch.Generator().manual_seed(3)
    counts = torch.zeros(240)
    for _ in range(400):
        counts[sample(rows, CONFIG, generator)] += 1
    for group, share in ((rows.positives, 16 / 40), (rows.negatives, 48 / 200)):
        expected, deviation = 400 * share, (400 * share * (1 - share)) ** 0.5
        assert bool(((counts[group] - expected).abs() < 5 * deviation).all())


def test_mirror() -> None:
    boxes = torch.tensor([[0.0, 5.0, 10.0, 20.0], [90.0, 0.0, 100.0, 1.0]])
    assert mirror(boxes, 100).tolist() == [[90, 5, 100, 20], [0, 0, 10, 1]]
    assert torch.equal(mirror(mirror(boxes, 137), 137), boxes)


def test_mirrored_boxes_have_targets_of_the_other_sign_along_x(generator: torch.Generator) -> None:
    boxes, objects = (random_boxes(30, generator).round() for _ in range(2))
    mirrored = encode(mirror(boxes, 500), mirror(objects, 500))
    torch.testing.assert_close(mirrored, encode(boxes, objects) * torch.tensor([-1.0, 1, 1, 1]))
    torch.testing.assert_close(box_iou(mirror(boxes, 500), mirror(objects, 500)), box_iou(boxes, objects))
