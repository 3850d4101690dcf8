"""Check the crops that R-CNN learns from: which regions they show, and that they are found again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from detector.boxes import decode
from detector.config import Config
from detector.crops import CropBatches, CropCaches
from detector.datasets import Sample
from detector.images import read_image
from detector.preparation import prepare
from detector.rcnn import RCNN
from detector.sampling import mirror
from detector.structures import GroundTruth
from detector.training import batch_losses
from detector.warping import warp_boxes
from proposals.registry import make_proposer
from proposals.store import ProposalStore
from tests.toy import CLASSES, tiny_trunk, toy_samples

CONFIG = Config(
    detector="rcnn", layers=(), channels=8, hidden=32, crops_per_image=12, regions_per_image=6, images_per_batch=2,
    max_proposals=150, epochs=2, repeat_below=0.0, dropout=0.0,
)  # fmt: skip


def make(folder: Path, config: Config = CONFIG) -> CropCaches:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = RCNN(config, CLASSES, tiny_trunk(2))
    return CropCaches(ProposalStore(folder / "proposals", make_proposer("single")), model, folder / "crops")


@pytest.fixture(scope="module")
def samples() -> tuple[Sample, ...]:
    return tuple(toy_samples()[:4])


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, samples: tuple[Sample, ...]) -> CropCaches:
    caches = make(tmp_path_factory.mktemp("cache"))
    done: list[int] = []
    prepare(samples, caches, 2, done.append)
    assert sum(done) == len(samples)
    assert all(caches.complete(sample) for sample in samples)
    return caches


def split(values: Tensor, count: int) -> Tensor:
    """Return the maps of each crop, (count, h, w, C), of maps below each other."""
    return values.permute(1, 2, 0).unflatten(0, (count, -1)).float()


@torch.inference_mode()
def turned(caches: CropCaches, sample: Sample) -> list[bool]:
    """Warp each kept region again, run the trunk on it alone, and tell whether what was kept is its mirror image.

    Float16 has 11 bits, so that a rounded value is off by 2**-11 of itself at most; twice that is allowed for sums.
    """
    maps, rows = caches.read(sample)
    trunk, image = caches.model.trunk, read_image(sample.path)
    kept = [split(m.values, len(rows.boxes)) for m in maps]
    assert [tuple(k.shape[1:]) for k in kept] == [(28, 28, 5), (14, 14, 7)]
    found = []
    for r, box in enumerate(rows.boxes):
        crop = warp_boxes(image, box[None], (trunk.mean.flatten(), trunk.std.flatten()))
        near = []
        for shown in (crop, crop.flip(3)):
            pairs = [(k[r], m[0].permute(1, 2, 0)) for k, m in zip(kept, trunk.maps(shown), strict=True)]
            near.append(all(torch.allclose(k, m, rtol=2**-10, atol=1e-5) for k, m in pairs))
        assert sum(near) == 1, "either as it is or mirrored"
        found.append(near[1])
    return found


def test_maps_and_targets_are_those_of_the_regions_mirrored_or_not(
    filled: CropCaches, samples: tuple[Sample, ...]
) -> None:
    """A kept region's target leads to an object of its label: in the photo, or in its mirror image if it is turned."""
    positives, regions = [0, 0], [0, 0]
    for sample in samples:
        _, rows = filled.read(sample)
        truth, width = sample.truth, sample.truth.size[1]
        for r, flipped in enumerate(turned(filled, sample)):
            regions[flipped] += 1
            box, target = rows.boxes[r : r + 1], rows.targets[r : r + 1]
            if int(rows.labels[r]) == len(CLASSES):
                assert not target.any()
                continue
            positives[flipped] += 1
            landed = mirror(decode(mirror(box, width), target), width) if flipped else decode(box, target)
            objects = truth.boxes[truth.labels == rows.labels[r]]
            assert float((objects - landed).abs().amax(dim=1).min()) < 1e-2
    assert sum(regions) / 4 < regions[1] < 3 * sum(regions) / 4
    moved = [rows.targets[:, 0].abs().max() for _, rows in map(filled.read, samples)]
    assert float(max(moved)) > 0.05, "a target of 0 has no sign"
    assert min(positives) > 0


def test_regions_are_the_paper_s_sample(filled: CropCaches, samples: tuple[Sample, ...]) -> None:
    """A quarter of twelve may be positive; all are proposals or objects, and labels follow from the overlaps."""
    for sample in samples:
        _, rows = filled.read(sample)
        assert len(rows.boxes) == CONFIG.crops_per_image
        assert 1 <= len(rows.positives) <= 3
        assert sorted([*rows.positives.tolist(), *rows.negatives.tolist()]) == list(range(12))
        proposals = filled.proposals.load(sample.image_id)
        assert proposals is not None
        known = torch.cat([sample.truth.boxes, proposals.boxes[: CONFIG.max_proposals]])
        assert bool((rows.boxes[:, None] == known).all(dim=2).any(dim=1).all())
        assert len(rows.boxes.unique(dim=0)) > 1
        best, match = box_iou(rows.boxes, sample.truth.boxes).max(dim=1)
        background = torch.tensor(len(CLASSES))
        assert torch.equal(rows.labels, torch.where(best >= 0.5, sample.truth.labels[match], background))
        assert (rows.labels < len(CLASSES)).nonzero()[:, 0].tolist() == rows.positives.tolist()


def test_nothing_is_mirrored_without_flip(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    assert not any(turned(make(tmp_path, dataclasses.replace(CONFIG, flip=False)), samples[0]))


def test_photos_with_few_regions_keep_all_of_them(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    """Of the first four proposals and the objects, those in the range of positives or negatives are kept, once each."""
    config = dataclasses.replace(CONFIG, max_proposals=4, positive_fraction=1.0, regions_per_image=50)
    caches = make(tmp_path, config)
    for sample in samples:
        maps, rows = caches.read(sample)
        assert len(sample.truth) <= len(rows.boxes) <= len(sample.truth) + 4 < CONFIG.crops_per_image
        assert all(bool((rows.boxes == box).all(dim=1).any()) for box in sample.truth.boxes)
        part = CropBatches([sample], caches, config, len(CLASSES)).draw(sample, (1, 0, len(CLASSES)))
        assert sorted(part.boxes.tolist()) == sorted(rows.boxes.tolist())
        assert part.maps[0].values.shape == maps[0].values.shape


def test_a_photo_may_have_no_region_to_learn_from(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    """A difficult object that is the whole photo leaves no positive, and none but disjoint boxes may be negative."""
    config = dataclasses.replace(CONFIG, negative_iou=(0.0, 1e-9))
    caches, (height, width) = make(tmp_path, config), samples[0].truth.size
    whole = torch.tensor([[0.0, 0, width, height]])
    truth = GroundTruth(whole, torch.tensor([1]), torch.tensor([True]), (height, width))
    none = dataclasses.replace(samples[0], truth=truth)
    maps, rows = caches.read(none)
    assert (len(rows.boxes), [m.values.shape[1] for m in maps]) == (0, [0, 0])
    batches = CropBatches([none, samples[1]], caches, config, len(CLASSES))
    batch = next(batches.iterate(0))
    assert sorted(len(part.boxes) for part in batch)[0] == 0
    losses, alone = (batch_losses(caches.model, [part for part in batch if len(part.boxes) >= n]) for n in (0, 1))
    assert losses.classes.item() == alone.classes.item() > 0
    assert losses.boxes.item() == alone.boxes.item()


def test_the_same_crops_come_again(filled: CropCaches, samples: tuple[Sample, ...], tmp_path: Path) -> None:
    path = filled.path(samples[0])
    before = path.read_bytes()
    path.unlink()
    assert not filled.complete(samples[0])
    filled.read(samples[0])
    assert path.read_bytes() == before
    for damaged in (before[: len(before) // 2], before[:5], b"", b"x" * 300):
        path.write_bytes(damaged)
        maps, _ = filled.read(samples[0])
        assert path.read_bytes() == before
        assert maps[0].values.dtype == torch.float16
    elsewhere = make(tmp_path)
    elsewhere.fill(samples[0])
    assert elsewhere.path(samples[0]).read_bytes() == before
    other = make(tmp_path, dataclasses.replace(CONFIG, seed=1)).read(samples[0])[1]
    twin = elsewhere.read(dataclasses.replace(samples[0], image_id="twin"))[1]
    for rows in (other, twin):
        assert rows.boxes.tolist() != filled.read(samples[0])[1].boxes.tolist()


def test_filling_continues_with_what_is_missing(filled: CropCaches, samples: tuple[Sample, ...]) -> None:
    paths = [filled.path(sample) for sample in samples]
    assert len({path.name for path in paths}) == len(samples)
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in paths]
    paths[1].unlink()
    done: list[int] = []
    prepare(samples, filled, 2, done.append)
    assert done == [3, 1]
    after = [(path.stat().st_mtime_ns, path.read_bytes()) for path in paths]
    assert [a[1] for a in after] == [b[1] for b in before]
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, False, True, True]
    assert not list(filled.folder.rglob(".*")), "nothing half written is left"


def test_other_objects_make_other_crops(filled: CropCaches, samples: tuple[Sample, ...]) -> None:
    sample = samples[1]
    truth = dataclasses.replace(sample.truth, labels=(sample.truth.labels + 1) % len(CLASSES))
    _, before = filled.read(sample)
    _, after = filled.read(dataclasses.replace(sample, truth=truth))
    assert before.labels[before.positives].tolist() != after.labels[after.positives].tolist()
    filled.read(sample)


SHAPES: tuple[dict[str, Any], ...] = (
    {"crops_per_image": 13}, {"seed": 1}, {"positive_iou": 0.6}, {"negative_iou": (0.2, 0.5)}, {"max_proposals": 99},
    {"positive_fraction": 0.5}, {"flip": False},
)  # fmt: skip


def test_folders_stand_for_what_shapes_the_crops(tmp_path: Path, samples: tuple[Sample, ...]) -> None:
    def place(
        config: Config = CONFIG, taps: int = 2, proposer: str = "single", names: tuple[str, ...] = CLASSES
    ) -> Path:
        model = RCNN(config, names, tiny_trunk(taps))
        store = ProposalStore(tmp_path / "proposals", make_proposer(proposer))
        return CropCaches(store, model, tmp_path / "crops").path(samples[0])

    own = place()
    assert own == make(tmp_path).path(samples[0])
    same = dataclasses.replace(
        CONFIG, learning_rate=0.5, hidden=64, rank_prior=0.0, epochs=9, images_per_batch=3, regions_per_image=5,
        levels=(4, 2, 1), channels=16, nms=0.5,
    )  # fmt: skip
    assert place(same) == own
    others = [place(dataclasses.replace(CONFIG, **change)) for change in SHAPES]
    others += [place(taps=1), place(proposer="fast"), place(names=("square", "circle", "triangle"))]
    assert len({path.parent for path in [own, *others]}) == 1 + len(SHAPES) + 3
    assert {path.name for path in others} == {own.name}


def test_a_photo_without_objects_has_background_only(filled: CropCaches, samples: tuple[Sample, ...]) -> None:
    sample, none = samples[2], torch.zeros(0, dtype=torch.int64)
    truth = dataclasses.replace(sample.truth, boxes=torch.zeros(0, 4), labels=none, difficult=none.bool())
    _, rows = filled.read(dataclasses.replace(sample, truth=truth))
    assert len(rows.positives) == 0
    assert rows.labels.tolist() == [len(CLASSES)] * CONFIG.crops_per_image
    filled.read(sample)


def test_batches_hold_the_maps_of_their_boxes(filled: CropCaches, samples: tuple[Sample, ...]) -> None:
    batches = CropBatches(samples, filled, CONFIG, len(CLASSES))
    for step, batch in enumerate(batches.iterate(0)):
        for part, index in zip(batch, batches.images(step), strict=True):
            maps, rows = filled.read(samples[index])
            assert len(part.boxes) == len(part.labels) == len(part.targets) == CONFIG.regions_per_image
            assert 1 <= int((part.labels < len(CLASSES)).sum()) <= 2, "a quarter of six"
            kept = [split(m.values, len(rows.boxes)) for m in maps]
            drawn = [split(m.values, len(part.boxes)) for m in part.maps]
            assert [m.values.dtype for m in part.maps] == [torch.float32] * 2
            for r in range(len(part.boxes)):
                same = (rows.boxes == part.boxes[r]).all(dim=1) & (rows.targets == part.targets[r]).all(dim=1)
                places = (same & (rows.labels == part.labels[r])).nonzero()[:, 0].tolist()
                assert any(
                    all(torch.equal(d[r], k[place]) for d, k in zip(drawn, kept, strict=True)) for place in places
                )
    assert step + 1 == batches.steps == 4


def test_a_batch_depends_on_the_seed_and_its_number_alone(filled: CropCaches, samples: tuple[Sample, ...]) -> None:
    everything = list(CropBatches(samples, filled, CONFIG, len(CLASSES)).iterate(0))
    rest = list(CropBatches(samples, filled, CONFIG, len(CLASSES)).iterate(2))
    assert (len(everything), len(rest)) == (4, 2)
    for one, other in zip(rest, everything[2:], strict=True):
        for a, b in zip(one, other, strict=True):
            assert all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("boxes", "labels", "targets"))
            assert all(torch.equal(m.values, n.values) for m, n in zip(a.maps, b.maps, strict=True))
    drawn = {str(sorted(part.boxes.tolist())) for batch in everything for part in batch}
    assert len(drawn) > len(samples), "a photo gives other regions in the next epoch"


def test_batches_can_be_learned_from(filled: CropCaches, samples: tuple[Sample, ...], tmp_path: Path) -> None:
    model = make(tmp_path).model
    batches = CropBatches(samples, filled, CONFIG, len(CLASSES))
    first = list(batches.first_maps(2))
    assert [[m.values.dtype for m in maps] for maps in first] == [[torch.float32] * 2] * 2
    model.reduction.measure(batches.first_maps(4))
    values = torch.cat([filled.read(sample)[0][1].values.float().flatten(1) for sample in samples], dim=1)
    torch.testing.assert_close(model.reduction.get_buffer("mean1"), values.mean(dim=1), rtol=1e-4, atol=1e-5)
    losses = batch_losses(model.train(), next(batches.iterate(0)))
    (losses.classes + losses.boxes).backward()  # type: ignore[no-untyped-call]
    parameters = model.learned_parameters()
    assert {name.split(".")[0] for name in parameters} == {"reduction", "head"}
    assert all(p.grad is not None and bool(p.grad.any()) for p in parameters.values())
    assert all(p.grad is None for p in model.trunk.parameters())
