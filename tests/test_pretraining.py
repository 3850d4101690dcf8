"""Check that the layers behind a trunk learn what the trunk's own classifier says of regions."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detector.backbones import Trunk, build_trunk
from detector.checkpoints import load_detector, read_tensors
from detector.config import Config, load_config
from detector.engines import choose_engine
from detector.features import Extractor, FeatureStore
from detector.preparation import Caches, prepare
from detector.pretraining import PretrainedNet, PretrainingBatches, PretrainingRun, class_names
from detector.teaching import AnswerCaches, Teacher
from detector.training import Metrics, train
from tests.noise import HEIGHT, WIDTH, photos

SETTINGS = load_config(
    None, ["channels=16", "hidden=64", "shorter=96", "longest=192", "epochs=40", "images_per_batch=4",
           "regions_per_image=16", "cascade=300", "repeat_below=0.0", "dropout=0.0", "average=0.9",
           "crops_per_image=30"],
)  # fmt: skip


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    return build_trunk("efficientnet_lite0", ("blocks.4", "blocks.6"))


def test_there_are_1000_classes_in_imagenet_s_order() -> None:
    names = class_names()
    assert (len(names), len(set(names)), names[0], names[-1]) == (1000, 1000, "n01440764", "n15075141")
    assert names == sorted(names)
    assert all(re.fullmatch(r"n\d{8}", name) for name in names)


def batches_of(trunk: Trunk, folder: Path, config: Config = SETTINGS) -> PretrainingBatches:
    samples, proposals = photos(folder / "photos")
    extractor = Extractor(trunk, config.shorter, config.longest)
    caches = Caches(proposals, FeatureStore(folder / "maps", extractor))
    answers = AnswerCaches(caches, Teacher(trunk, choose_engine("eager")), config, folder / "answers")
    prepare(samples, answers, 1, lambda _: None)
    return PretrainingBatches(samples, answers)


def test_a_draw_is_what_the_teacher_says_of_its_regions(trunk: Trunk, tmp_path: Path) -> None:
    """Count the regions of 40 draws: of those asked about, mirrored half of the time, and the whole photo last."""
    batches = batches_of(trunk, tmp_path)
    mirrored, used = 0, set()
    for place in range(40):
        item = batches.samples[place % 4]
        share = batches.draw(item, (3, place, 1000))
        maps, known, logits = batches.caches.read(item)
        x1, y1, x2, y2 = known[:-1].unbind(1)
        turned = torch.stack([WIDTH - x2, y1, WIDTH - x1, y2], dim=1)
        rows = [
            ((share.boxes[:-1, None] - boxes[None]).abs().amax(dim=2) < 1e-3).nonzero()[:, 1].tolist()
            for boxes in (known[:-1], turned)
        ]
        assert sorted(map(len, rows)) == [0, 15]
        chosen = max(rows, key=len)
        assert len(set(chosen)) == 15
        used |= {(item.image_id, row) for row in chosen}
        assert share.boxes[-1].tolist() == [0, 0, WIDTH, HEIGHT]
        flip = len(rows[1]) > 0
        mirrored += flip
        for ours, kept in zip(share.maps, maps, strict=True):
            values = kept.values.float()
            assert torch.equal(ours.values, values.flip(2) if flip else values)
        answers = logits[[*chosen, len(known) - 1]].softmax(dim=1)
        assert torch.equal(share.targets, answers)
        assert torch.equal(share.labels, answers.argmax(dim=1))
        torch.testing.assert_close(share.targets.sum(dim=1), torch.ones(16))
    assert 8 <= mirrored <= 32  # four standard deviations around 20 of 40
    assert len(used) == 4 * 29


def test_a_draw_depends_on_its_key_alone(trunk: Trunk, tmp_path: Path) -> None:
    batches = batches_of(trunk, tmp_path, replace(SETTINGS, epochs=4))
    first, again, other = (batches.draw(batches.samples[0], key) for key in ((1, 2, 0), (1, 2, 0), (1, 3, 0)))
    assert torch.equal(first.boxes, again.boxes)
    assert torch.equal(first.targets, again.targets)
    assert not torch.equal(first.boxes, other.boxes)
    later, all_of_them = list(batches.iterate(2)), list(batches.iterate(0))
    assert (len(later), len(all_of_them)) == (2, 4)
    for ours, theirs in zip(later, all_of_them[2:], strict=True):
        assert all(torch.equal(a.targets, b.targets) for a, b in zip(ours, theirs, strict=True))


def test_layers_learn_to_answer_as_the_teacher(trunk: Trunk, tmp_path: Path) -> None:
    """Learn four photos, once stopped on the way; the result knows 1,000 classes, and its boxes learned nothing."""
    paths = []
    for stop in (0, 20):
        batches = batches_of(trunk, tmp_path)
        told: list[Metrics] = []
        for end in (stop, 0)[not stop :]:
            torch.manual_seed(5)
            net = PretrainedNet(SETTINGS, class_names(), trunk)
            idle = {
                n: p.detach().half() for n, p in net.named_parameters() if n.startswith(("head.deltas", "head.coarse"))
            }

            def report(metrics: Metrics, _: float, end: int = end, told: list[Metrics] = told) -> None:
                told.append(metrics)
                if metrics.step == end:
                    raise KeyboardInterrupt

            run = PretrainingRun(net, tmp_path / str(stop), "noise")
            if end:
                with pytest.raises(KeyboardInterrupt):
                    train(run, batches, report)
            else:
                paths.append(train(run, batches, report))
        assert [metrics.step for metrics in told] == [20, 40]
        answers = torch.cat([batches.caches.read(item)[2].softmax(dim=1) for item in batches.samples])
        least = float(-(answers * answers.log()).sum(dim=1).mean())  # the cross entropy of who answers as the teacher
        assert least < told[-1].loss < least + 0.5 * (told[0].loss - least)
        assert told[-1].positives_right > told[0].positives_right + 0.1
        assert told[-1].box_loss == 0
    (whole, _), (stopped, _) = map(read_tensors, paths)
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert len(idle) == 6
    assert all(torch.equal(whole[name], value) for name, value in idle.items())
    assert load_detector(paths[0]).class_names == tuple(class_names())
