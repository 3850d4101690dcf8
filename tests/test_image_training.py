"""Check training of all layers from images: sizes in turn, what is cut, and that a stopped run ends as a whole one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.checkpoints import read_tensors
from detector.classification import Classifier
from detector.classifier_config import ClassifierConfig
from detector.classifier_files import load_classifier
from detector.drawing import save_image
from detector.image_training import ImageBatches, ImageMetrics, ImageRun, draw_part, train_images
from detector.images import read_image, resize_image, scaled_size
from detector.labels import LabelSet, open_labels

CONFIG = ClassifierConfig(
    trunk="small", pretrained=False, normalise=False, head="fc", learn="all", sizes=(24, 40), side=32, epochs=6,
    images_per_batch=8, average=0.9, dropout=0.2,
)  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> LabelSet:
    """Return 20 pictures with stripes along or across, of several shapes."""
    root = tmp_path_factory.mktemp("stripes")
    generator = torch.Generator().manual_seed(4)
    for name in ("across", "along"):
        for number in range(10):
            height, width = (int(n) for n in torch.randint(40, 70, (2,), generator=generator))
            stripes = ((torch.arange(max(height, width)) // 5) % 2 * 200).to(torch.uint8)
            image = (
                stripes[:height, None].expand(height, width)
                if name == "along"
                else stripes[:width].expand(height, width)
            )
            save_image(image.expand(3, height, width).contiguous(), root / name / f"{number}.png")
    return open_labels([f"folder:{root}"])


def build(photos: LabelSet, config: ClassifierConfig = CONFIG) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return Classifier(config, photos.class_names, False)


def ignore(metrics: ImageMetrics) -> None:
    """Be told of metrics."""


def test_sizes_take_turns_by_epoch(photos: LabelSet) -> None:
    batches = ImageBatches(photos.samples, CONFIG)
    assert (batches.per_epoch, batches.steps) == (2, 12)
    assert [batches.side(step) for step in range(12)] == [24, 24, 40, 40] * 3
    assert [batch.pixels.shape[2:] for batch in batches.iterate(6)] == [(40, 40)] * 2 + [(24, 24)] * 2 + [(40, 40)] * 2


def test_random_sizes_cover_the_range_evenly(photos: LabelSet) -> None:
    batches = ImageBatches(photos.samples, replace(CONFIG, size_rule="random", sizes=(24, 27)))
    counts = Counter(batches.side(step) for step in range(4000))
    assert set(counts) == {24, 25, 26, 27}
    assert max(abs(count - 1000) for count in counts.values()) < 120


def test_an_epoch_shows_every_image_once_and_batch_k_depends_on_k_alone(photos: LabelSet) -> None:
    batches = ImageBatches(photos.samples, replace(CONFIG, images_per_batch=5))
    shown = [index for step in range(4) for index in batches.images(step)]
    assert sorted(shown) == list(range(20))
    for step, batch in zip(range(2, 24), batches.iterate(2), strict=True):
        again = batches.batch(step)
        assert torch.equal(batch.pixels, again.pixels)
        assert torch.equal(batch.labels, torch.stack([photos[i].labels for i in batches.images(step)]))


@pytest.mark.parametrize("size", [(64, 64), (50, 90), (300, 20)])
def test_a_part_is_a_square_of_the_image_whose_shorter_side_is_eight_sevenths_of_it(size: tuple[int, int]) -> None:
    image = torch.randint(256, (3, *size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    resized = resize_image(image, scaled_size(size, 32, 32 * max(size)))
    squares = resized.unfold(1, 28, 1).unfold(2, 28, 1).flatten(1, 2).transpose(0, 1)
    random = np.random.default_rng(0)
    mirrored = 0
    for _ in range(20):
        part = draw_part(image, 28, True, random)
        plain, turned = (bool((squares == p).flatten(1).all(dim=1).any()) for p in (part, part.flip(2)))
        assert plain or turned
        mirrored += turned
    assert 2 < mirrored < 18
    plain = [draw_part(image, 28, False, random) for _ in range(5)]
    assert all(bool((squares == p).flatten(1).all(dim=1).any()) for p in plain)


def test_stripes_are_learned_and_told_at_sizes_that_were_never_shown(photos: LabelSet, tmp_path: Path) -> None:
    seen: list[ImageMetrics] = []
    run = ImageRun(build(photos, replace(CONFIG, epochs=40)), tmp_path, "stripes")
    path = train_images(run, ImageBatches(photos.samples, run.model.config), seen.append)
    assert path == tmp_path / "model.safetensors"
    assert not (tmp_path / "state.safetensors").exists()
    assert seen[-1].step == 80
    assert seen[-1].right > 0.9
    model = load_classifier(path)
    for side in (24, 32, 44):
        found = [model.predict(read_image(sample.path), "full", side).scores.argmax() for sample in photos]
        assert float((torch.stack(found) == photos.single).float().mean()) > 0.9


@pytest.mark.parametrize("rule", ["alternate", "random"])
def test_a_stopped_run_ends_with_the_weights_of_one_that_was_not(rule: str, photos: LabelSet, tmp_path: Path) -> None:
    config = replace(CONFIG, size_rule=rule, epochs=24)
    batches = ImageBatches(photos.samples, config)
    whole = train_images(ImageRun(build(photos, config), tmp_path / "whole", "k"), batches, ignore)

    def stop(metrics: ImageMetrics) -> None:
        if metrics.step == 40:
            raise KeyboardInterrupt

    run = ImageRun(build(photos, config), tmp_path / "parts", "k")
    with pytest.raises(KeyboardInterrupt):
        train_images(run, batches, stop)
    again = ImageRun(build(photos, config), tmp_path / "parts", "k")
    parts = train_images(again, batches, ignore)
    assert again.step == 48
    first, second = read_tensors(whole), read_tensors(parts)
    assert first[1]["history"] == second[1]["history"]
    assert first[0].keys() == second[0].keys()
    assert all(torch.equal(value, second[0][name]) for name, value in first[0].items())
    assert train_images(ImageRun(build(photos, config), tmp_path / "parts", "k"), batches, stop) == parts


def test_a_folder_with_another_run_is_refused(photos: LabelSet, tmp_path: Path) -> None:
    run = ImageRun(build(photos), tmp_path, "k")
    for _ in ImageBatches(photos.samples, CONFIG).iterate(11):
        loss = sum(parameter.square().sum() for parameter in run.parameters.values())
        assert isinstance(loss, torch.Tensor)
        run.descend(loss, 12)
    run.save_state()
    other = ImageRun(build(photos, replace(CONFIG, sizes=(24,))), tmp_path, "k")
    with pytest.raises(ValueError, match="expected an empty folder or the same run, got a run of other settings"):
        other.continue_from_disk()


def test_layers_behind_the_tap_do_not_learn(photos: LabelSet) -> None:
    config = replace(CONFIG, trunk="efficientnet_lite0", pretrained=True, layer="blocks.4")
    names = set(build(photos, config).learned_parameters())
    assert any(name.startswith("trunk.model.blocks.4.") for name in names)
    assert not any(name.startswith(("trunk.model.blocks.5", "trunk.model.conv_head")) for name in names)
    assert set(build(photos, config).learned_state()) == names | {"slope", "shift"}
