"""Check the shipped model: its file, what it finds in known photos, and its score on test photos."""

from __future__ import annotations

from pathlib import Path

import pytest
import skimage
import torch
from torchvision.ops import box_iou

from detector.checkpoints import SHIPPED, list_models, load_detector, read_tensors
from detector.classes import VOC_CLASSES
from detector.config import load_config
from detector.datasets import open_datasets
from detector.evaluation import evaluate
from detector.images import read_image
from detector.sppnet import SPPNet
from detector.structures import Detections
from proposals.registry import make_proposer
from tests.contracts import check_detector
from tests.sources import REPOSITORY

NAME = "voc-lite0"
FLOOR = 0.68  # it was 0.714 when the model was shipped
PHOTOS = Path(skimage.__file__).parent / "data"


@pytest.fixture(scope="module")
def net() -> SPPNet:
    return load_detector(NAME)


def find(net: SPPNet, path: Path) -> Detections:
    image = read_image(path)
    return net.predict(image, make_proposer(net.config.proposals)(image))


def test_the_file_is_small_and_says_what_it_is() -> None:
    assert NAME in list_models()
    path = SHIPPED / f"{NAME}.safetensors"
    assert path.stat().st_size <= 25_000_000
    tensors, metadata = read_tensors(path)
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    assert {"format", "config", "class_names", "trunk", "version"} <= metadata.keys()


def test_it_knows_the_classes_of_voc(net: SPPNet) -> None:
    assert net.class_names == tuple(VOC_CLASSES)


def test_its_settings_are_those_of_its_config_file_and_the_defaults(net: SPPNet) -> None:
    assert net.config == load_config(REPOSITORY / "configs" / f"{NAME}.yaml") == load_config(None)


@pytest.mark.slow
def test_it_keeps_the_contract_of_detectors(net: SPPNet) -> None:
    check_detector(net)


# The boxes were drawn by hand, in pixels: x1, y1, x2, y2.
@pytest.mark.parametrize(
    ("photo", "label", "box"),
    [
        ("chelsea.png", "cat", [20, 10, 420, 300]),
        ("astronaut.png", "person", [10, 0, 460, 512]),
        ("motorcycle_left.png", "motorbike", [110, 70, 600, 480]),
    ],
)
def test_it_finds_what_anybody_sees(net: SPPNet, photo: str, label: str, box: list[float]) -> None:
    if not (PHOTOS / photo).is_file():
        pytest.skip(f"this version of scikit-image does not install {photo}")
    found = find(net, PHOTOS / photo)
    best = found.labels[0]
    assert found.class_names[int(best)] == label
    assert float(found.scores[0]) >= net.readable_score
    assert float(box_iou(found.boxes[:1], torch.tensor([box], dtype=torch.float32))) > 0.5


@pytest.mark.slow
def test_its_score_on_test_photos_stays_above_a_floor(net: SPPNet, shared_data: Path) -> None:
    """Measure on the first 60 test photos of VOC2012 val, whose classes are the most even."""
    dataset = open_datasets([f"voc:{shared_data / 'VOC2012'}:val"], net.class_names).subset(range(60))
    found = [find(net, sample.path) for sample in dataset.samples]
    assert evaluate(found, dataset.truths, net.class_names, ["voc07"])["voc07"].map > FLOOR
