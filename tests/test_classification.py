"""Check the classifier: its vectors against pooling by others, views of the map against views of the image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detector.backbones import Tap, Trunk
from detector.classification import Classification, Classifier, classification_loss, mirrored_bins, told_right
from detector.classifier_config import ClassifierConfig
from detector.pooling import spatial_pyramid_pool
from detector.views import VIEWS, plan_views
from tests.toy import tiny_trunk

NAMES = ("cat", "dog", "owl")
SMALL = ClassifierConfig(trunk="small", pretrained=False, side=48, head="fc")


def classifier(config: ClassifierConfig = SMALL, several: bool = False, trunk: Trunk | None = None) -> Classifier:
    """Return a classifier with seeded random layers."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Classifier(config, NAMES, several, trunk)
        for parameter in model.head.parameters():
            nn.init.normal_(parameter, std=0.1)
    return model


def photo(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def vectors_of(model: Classifier, image: Tensor, views: str, side: int) -> Tensor:
    looks = plan_views((image.shape[1], image.shape[2]), views, side)
    return model.pool_views(model.feature_maps(image, looks), looks)


def unpadded_trunk() -> Trunk:
    """Return a trunk whose cell (i, j) sees the pixels [4 i, 4 i + 4) x [4 j, 4 j + 4) and nothing else."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = nn.Module()
        model.features = nn.Sequential(nn.Conv2d(3, 5, 4, stride=4), nn.ReLU())
    half = torch.full((3,), 127.5)
    return Trunk("unpadded", model, (Tap("features.1", 4, 1.5, 5),), (half, half))


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("levels", [(4, 2, 1), (3, 2)])
def test_a_vector_is_the_pyramid_of_the_cells_of_the_image(pooling: str, levels: tuple[int, ...]) -> None:
    config = replace(SMALL, pooling=pooling, levels=levels, normalise=False)
    model = classifier(config)
    image = photo(70, 90)  # padded to 72 x 96 pixels, 9 x 12 cells
    (vector,) = vectors_of(model, image, "full", 70)
    pool = F.adaptive_max_pool2d if pooling == "max" else F.adaptive_avg_pool2d
    with torch.no_grad():
        cells = model.trunk.maps(F.pad(model.trunk.normalise(image[None]), (0, 6, 0, 2)))[0]
    expected = torch.cat([pool(cells, n).flatten(2) for n in levels], dim=2).transpose(1, 2).flatten()
    torch.testing.assert_close(vector, expected, rtol=1e-5, atol=1e-5)
    assert len(vector) == model.length == 96 * sum(n * n for n in levels)


def test_cells_of_the_padding_are_not_pooled() -> None:
    """EfficientNet-Lite's cells lie 32 pixels apart, the first on pixel 31: 90 pixels have 3, the padding a fourth."""
    config = replace(SMALL, trunk="efficientnet_lite0", layer="blocks.6", levels=(1,), normalise=False)
    model = classifier(config)
    (vector,) = vectors_of(model, photo(70, 100), "full", 70)
    with torch.no_grad():
        cells = model.trunk.maps(F.pad(model.trunk.normalise(photo(70, 100)[None]), (0, 28, 0, 26)))[0]
    assert cells.shape[2:] == (3, 4)
    torch.testing.assert_close(vector, cells[0, :, :2, :3].amax(dim=(1, 2)), rtol=1e-5, atol=1e-5)


def test_vectors_have_length_one_if_they_are_normalised() -> None:
    vectors = vectors_of(classifier(), photo(50, 64), "ten", 32)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(10))


def test_views_of_the_map_are_views_of_the_image_where_cells_see_no_further() -> None:
    model = classifier(replace(SMALL, normalise=False, projection="inside"), trunk=unpadded_trunk())
    image = photo(32, 48)  # at 32 pixels it is not resized; corners and centre of 28 pixels lie on whole cells
    once, crops = (vectors_of(model, image, views, 28) for views in ("ten", "ten-crop"))
    places = [0, 1, 2, 3, 4]
    inside = [p for p in places if p != 4]  # the centre view starts at pixel (10, 2), within a cell
    torch.testing.assert_close(once[inside], crops[inside], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(once[4], crops[4])


def test_cells_that_see_only_the_view_equal_those_of_its_own_picture() -> None:
    """A deeper trunk: cells whose receptive field lies in the view are equal, those at its border are not."""
    model = classifier()
    image = photo(128, 160)
    (whole,) = plan_views((128, 160), "full", 128)
    big = model.feature_maps(image, [whole])[0].values
    x1, y1, x2, y2 = 32, 16, 128, 112
    crop = image[:, y1:y2, x1:x2]
    (look,) = plan_views((96, 96), "full", 96)
    small = model.feature_maps(crop, [look])[0].values
    part = big[:, y1 // 8 : y2 // 8, x1 // 8 : x2 // 8]
    centres = 3 + 8 * torch.arange(12)
    reach = 27  # half of the field of 55 pixels that detector.geometry measures
    seen = (centres >= reach) & (centres < 96 - reach)
    assert int(seen.sum()) > 4
    torch.testing.assert_close(part[:, seen][:, :, seen], small[:, seen][:, :, seen], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(part[:, 0], small[:, 0], rtol=1e-2)


@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (4, 2, 1), (5,)])
@pytest.mark.parametrize("width", range(1, 14))
def test_mirrored_bins_are_the_bins_of_the_mirrored_map(levels: tuple[int, ...], width: int) -> None:
    values = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(width))
    order = mirrored_bins(levels)

    def pooled(cells: Tensor) -> Tensor:
        window = torch.tensor([[0, 0, width, 5]])
        return torch.cat([spatial_pyramid_pool(cells, window, (n,))[0] for n in levels])

    assert torch.equal(pooled(values)[order], pooled(values.flip(2)))


def test_pictures_of_one_size_go_through_together_and_come_out_as_alone() -> None:
    model = classifier()
    looks = plan_views((60, 75), "ten-crop", 40)
    image = photo(60, 75)
    together = model.feature_maps(image, looks)
    alone = [model.feature_maps(image, [look])[0] for look in looks]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a.values, b.values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (3, 2), (37, 64), (90, 31)])
@pytest.mark.parametrize("views", VIEWS)
def test_images_of_any_size_are_classified(size: tuple[int, int], views: str) -> None:
    found = classifier().predict(photo(*size), views, 24)
    assert found.scores.shape == (3,)
    assert float(found.scores.sum()) == pytest.approx(1)
    assert [name for name, _ in found.top(2)] == [row["label"] for row in found.to_dicts(2)]


def test_scores_are_the_mean_of_the_views() -> None:
    model = classifier()
    image = photo(50, 70)
    vectors = vectors_of(model, image, "ten", 40)
    with torch.no_grad():
        expected = model.head(vectors).softmax(dim=1).mean(dim=0)
    torch.testing.assert_close(model.predict(image, "ten", 40).scores, expected)


def test_scores_of_several_classes_and_of_machines() -> None:
    image = photo(50, 70)
    model = classifier(several=True)
    with torch.no_grad():
        logits = model.head(vectors_of(model, image, "full", 48))[0]
        torch.testing.assert_close(model.predict(image).scores, logits.sigmoid())
        machine = classifier(replace(SMALL, head="svm"), several=True)
        machine.slope.fill_(2.0)
        machine.shift.fill_(-0.5)
        margins = machine.head(vectors_of(machine, image, "full", 48))[0]
    torch.testing.assert_close(machine.predict(image).scores, (2 * margins - 0.5).sigmoid())
    single = classifier(replace(SMALL, head="svm"))
    assert float(single.predict(image).scores.sum()) == pytest.approx(1)


def test_learning_reads_what_prediction_reads() -> None:
    """The differentiable way through a batch gives the logits of the way that predicts."""
    model = classifier(trunk=tiny_trunk())
    pictures = torch.stack([photo(44, 44, seed) for seed in range(3)])
    with torch.no_grad():
        batch = model(model.prepare(pictures), (44, 44))
        alone = torch.cat([model.head(vectors_of(model, picture, "full", 44)) for picture in pictures])
    torch.testing.assert_close(batch, alone, rtol=1e-4, atol=1e-5)


def test_the_engine_changes_scores_by_rounding_only() -> None:
    model = classifier()
    before = model.predict(photo(50, 70)).scores
    model.use_engine("auto")
    torch.testing.assert_close(model.predict(photo(50, 70)).scores, before, rtol=0, atol=0.02)


def test_the_loss_leaves_out_what_is_not_known() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
    labels = torch.tensor([[1, -1, 0], [-1, 0, -1]], dtype=torch.int8)
    p = 1 / (1 + torch.exp(-logits))
    expected = -(p[0, 0].log() + (1 - p[0, 1]).log() + (1 - p[1, 0]).log() + (1 - p[1, 2]).log()) / 4
    torch.testing.assert_close(classification_loss(logits, labels, True), expected)
    one = torch.tensor([[1, -1, -1], [-1, -1, 1]], dtype=torch.int8)
    expected = -(logits.softmax(1)[0, 0].log() + logits.softmax(1)[1, 2].log()) / 2
    torch.testing.assert_close(classification_loss(logits, one, False), expected)
    assert told_right(logits, one, False) == 0.5


def test_equal_scores_are_told_in_the_order_of_the_classes() -> None:
    found = Classification(torch.tensor([0.25, 0.5, 0.25]), NAMES, False)
    assert found.top(5) == [("dog", 0.5), ("cat", 0.25), ("owl", 0.25)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "knn"}, "expected a head among svm, fc, got 'knn'"),
        ({"learn": "all", "head": "svm"}, "expected head=fc to learn all layers"),
        ({"dropout": 1.0}, r"expected dropout, average and holdout in \[0, 1\)"),
        ({"levels": (2, 0)}, "expected levels and sizes of at least 1"),
        ({"C": 0.0}, "expected C above 0, got 0.0"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"views": "all"}, "expected views among"), ({"projection": "far"}, "expected a projection among")],
)
def test_wrong_names_are_refused_when_the_classifier_is_built(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Classifier(replace(SMALL, **changes), NAMES, False)
