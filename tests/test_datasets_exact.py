"""Test what opening repairs, that boxes stay exact where they must, and that odd files are refused in one line."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import ExifTags, Image

from detector.datasets import open_dataset, open_datasets
from detector.images import read_image
from detector.trees import header_size
from tests.test_datasets import coco_tree, row, thing, voc_tree, xml

SMALLER = "<size><width>30</width><height>20</height></size>"


def test_the_size_of_the_image_file_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Clip to the 60 x 40 pixels of the file, which both annotations say are 30 x 20."""
    voc = voc_tree(tmp_path / "v", {"a": xml(thing("cat", 11, 6, 50, 35), thing("cat", 31, 1, 70, 9), size=SMALLER)})
    images = [{"id": 5, "file_name": "a.jpg", "width": 30, "height": 20}]
    coco = coco_tree(tmp_path / "c", [row(5, 7, [10, 5, 40, 30])], images=images)
    with caplog.at_level(logging.WARNING):
        first, second = open_datasets([voc, coco])
    assert first.truth.size == second.truth.size == (40, 60)
    assert first.truth.boxes.tolist() == [[10, 5, 50, 35], [30, 0, 60, 9]]
    assert second.truth.boxes.tolist() == [[10, 5, 50, 35]]
    assert "2 sizes that are not the image's, repaired: the size of the image file counts; the first: " in caplog.text
    assert "a.xml: expected the size of a.jpg, width 60 and height 40, got 30 and 20" in caplog.text


def test_exact_boxes_are_those_of_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    objects = [thing("cat", 0.1, 1, 60.3, 40), thing("cat", 100, 100, 120, 110), thing("cat", 9, 9, 9, 20)]
    voc = voc_tree(tmp_path / "v", {"a": xml(*objects)})
    with caplog.at_level(logging.WARNING):
        dataset = open_datasets([voc], exact=True)
    assert dataset[0].truth.boxes.dtype == torch.float64
    assert dataset[0].truth.boxes.tolist() == [[0.1 - 1, 0, 60.3, 40], [99, 99, 120, 110]]
    assert dataset.dropped == 1
    assert [record.message.split(",")[0] for record in caplog.records] == ["1 boxes of no area"]
    clipped = open_datasets([voc])
    assert clipped[0].truth.boxes.dtype == torch.float32
    assert clipped[0].truth.boxes.tolist() == [[0, 0, 60, 40]]
    assert clipped.dropped == 2
    coco = coco_tree(tmp_path / "c", [row(5, 7, [0.1, 0.2, 0.7, 70]), row(3, 7, [-9, -9, 3, 3])])
    exact = open_datasets([coco], exact=True)
    assert [t.boxes.tolist() for t in exact.truths] == [[[-9, -9, -6, -6]], [[0.1, 0.2, 0.1 + 0.7, 70.2]]]


def test_a_box_too_small_for_float32_has_no_area(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    coco = coco_tree(tmp_path, [row(5, 7, [50, 1, 1e-9, 9]), row(5, 7, [1, 1, 2, 2])])
    with caplog.at_level(logging.WARNING):
        assert open_dataset(coco).dropped == 1
    assert "1 boxes of no area, repaired: left out" in caplog.text
    assert len(open_datasets([coco], exact=True)[1].truth) == 2


def test_the_file_of_a_single_coco_set_is_known(tmp_path: Path) -> None:
    coco = coco_tree(tmp_path / "c", [row(5, 7, [1, 1, 8, 8])])
    voc = voc_tree(tmp_path / "v", {"a": xml(thing("cat", 1, 1, 9, 9))})
    dataset = open_dataset(coco)
    assert dataset.coco_file == tmp_path / "c" / "instances.json"
    assert dataset.subset([0]).coco_file == dataset.coco_file
    assert [open_datasets(specs).coco_file for specs in ([voc], [coco, voc], [voc, coco])] == [None] * 3


def test_classes_in_any_case_are_one(tmp_path: Path) -> None:
    plain = [thing(name, 1, 1, 9, 9, difficult="") for name in ("Cat", "CAT", "cat", "rbc", "RBC")]
    dataset = open_dataset(voc_tree(tmp_path / "v", {"a": xml(*plain)}))
    assert dataset.class_names == ("cat", "RBC")
    assert dataset[0].truth.labels.tolist() == [0, 0, 0, 1, 1]
    assert dataset[0].truth.difficult.tolist() == [False] * 5
    categories = [{"id": 7, "name": "CAT"}, {"id": 90, "name": "Cat"}]
    coco = coco_tree(tmp_path / "c", [row(5, 7, [1, 1, 2, 2]), row(5, 90, [1, 1, 2, 2])], categories=categories)
    assert open_dataset(coco, ["cAt"])[1].truth.labels.tolist() == [0, 0]


IMAGES = [{"id": 5, "file_name": "a.jpg"}]


@pytest.mark.parametrize(
    ("rows", "tables", "message"),
    [
        ([], {"images": [*IMAGES, {"id": 5.0, "file_name": "b.png"}]}, "an id of its own for every image, got id 5"),
        ([], {"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "id of its own for every category"),
        ([], {"images": [*IMAGES, {"id": 6, "file_name": "a.jpg"}]}, "in one of the data sets only, got it twice"),
        ([], {"images": [{"id": [], "file_name": "a.jpg"}]}, "a number or a text as id of every image, got []"),
        ([], {"images": [{"id": True, "file_name": "a.jpg"}]}, "a number or a text as id of every image, got True"),
        ([], {"images": [{"id": 5, "file_name": 3}]}, "a text as file_name of every image, got 3"),
        ([], {"images": [{"id": 5, "file_name": "a\nb\0.jpg"}]}, "expected an image that"),
        ([], {"images": [{"id": 5, "file_name": "\ud800.jpg"}]}, "expected an image that"),
        ([], {"images": [{"id": 5, "file_name": "x" * 5000}]}, "expected an image that"),
        ([], {"images": [{"id": 5}]}, "got no 'file_name' in entry 1 of images"),
        ([], {"categories": [{"id": 1, "name": " "}]}, "a text as name of every category, got ' '"),
        ([None], {}, "got another type in entry 1 of annotations"),
        ([row(5, {}, [1, 1, 2, 2])], {}, "expected a listed category in every annotation, got id {}"),
        ([row(5, 7, [1, 1, 10**400, 2])], {}, "expected four finite numbers as bbox"),
        ([row(5, 7, [1e308, 1, 1e308, 2])], {}, "expected four finite numbers as bbox"),
        ([row(5, 7, json.loads("[" * 900 + "]" * 900))], {}, "expected four finite numbers as bbox, got [[[[[["),
        ([row(5, 7, [1, 1, "2", 2])], {}, "expected four finite numbers as bbox"),
        ([row(5, 7, [1, 1, True, 2])], {}, "expected four finite numbers as bbox"),
        ([row(5, 7, [1, 1, 2, 2], iscrowd="no")], {}, "expected 0 or 1 as iscrowd, got 'no'"),
    ],
)
def test_odd_coco_entries_are_refused(tmp_path: Path, rows: Any, tables: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        open_dataset(coco_tree(tmp_path, rows, **tables))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"images": ' + b"[" * 200_000, "maximum recursion depth"),
        (b'{"images": [' + b"9" * 5000 + b"]}", "damaged or truncated file"),
        (b'{"images": [], "annotations": {}, "categories": []}', "with the lists images, annotations, categories, got"),
        (b"\x89PNG\r\n", "a damaged file, or another one, that begins with"),
        (b'{"images"\xff', "damaged or truncated file"),
        (b"\n\n", "a damaged one, without text"),
    ],
)
def test_files_that_are_no_coco_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    spec = coco_tree(tmp_path, [])
    (tmp_path / "instances.json").write_bytes(content)
    with pytest.raises(ValueError) as caught:
        open_dataset(spec)
    assert str(caught.value).startswith(f"{tmp_path / 'instances.json'}: expected COCO JSON")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_huge_files_are_refused_unread(tmp_path: Path) -> None:
    """Grow files to sizes that no memory holds; on disk they are holes."""
    coco, voc = coco_tree(tmp_path / "c", []), voc_tree(tmp_path / "v", {"a": xml()})
    xml_file, list_file = tmp_path / "v/Annotations/a.xml", tmp_path / "v/ImageSets/Main/train.txt"
    for spec, file, message in (
        (coco, tmp_path / "c/instances.json", "expected COCO JSON of at most 4 GiB, got 1024.0 GiB"),
        (voc, xml_file, "of more than 64 MiB"),
        (voc, list_file, "expected a text file with one image name per line, got one of more than 256 MiB"),
    ):
        os.truncate(file, 2**40)
        with pytest.raises(ValueError, match=message):
            open_dataset(spec)


def test_odd_xml_is_refused_or_read(tmp_path: Path) -> None:
    spec = voc_tree(tmp_path / "v", {"a": xml(thing("cat", 1, 1, 9, 9))})
    file = tmp_path / "v/Annotations/a.xml"
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 9))
    bomb = f'<!DOCTYPE annotation [<!ENTITY e0 "lol">{entities}]>' + xml(thing("&e8;", 1, 1, 9, 9))
    file.write_text(bomb)  # 300 MB if it were expanded
    with pytest.raises(ValueError, match=r"a\.xml: expected VOC XML, got a damaged or truncated file"):
        open_dataset(spec)
    file.unlink()
    file.mkdir()
    with pytest.raises(ValueError, match=r"a\.xml: expected a VOC annotation, got Is a directory"):
        open_dataset(spec)
    file.rmdir()
    file.write_text(xml("<a>" * 50_000 + "</a>" * 50_000, thing("cat", 1, 1, 9, 9)))
    assert len(open_dataset(spec)[0].truth) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("late", [False, True])
def test_header_sizes_are_those_of_the_pixels(tmp_path: Path, orientation: int, late: bool) -> None:
    """Find the orientation in front of the pixels and, in a PNG, behind them."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture = Image.new("RGB", (60, 40))
    for name in ("a.jpg", "a.png", "a.webp"):
        picture.save(tmp_path / name, exif=exif)
    if late:
        content = (tmp_path / "a.png").read_bytes()
        start = content.index(b"eXIf") - 4
        stop = start + int.from_bytes(content[start : start + 4], "big") + 12
        end = content.index(b"IEND") - 4
        (tmp_path / "a.png").write_bytes(content[:start] + content[stop:end] + content[start:stop] + content[end:])
    for path in tmp_path.iterdir():
        assert header_size(path) == tuple(read_image(path).shape[1:]) == ((40, 60) if orientation < 5 else (60, 40))


def test_names_may_be_numbers_and_texts(tmp_path: Path) -> None:
    """Read ids of 5.0 as 5, and numbers before texts, in COCO files of other programs."""
    images = [{"id": "x", "file_name": "a.jpg"}, {"id": 5.0, "file_name": "b.png"}]
    spec = coco_tree(tmp_path, [row(5, 7, [1, 1, 2, 2])], images=images, categories=[{"id": 7.0, "name": 3}])
    dataset = open_dataset(spec)
    assert [sample.source_id for sample in dataset] == [5, "x"]
    assert (dataset.class_names, dataset.category_ids) == (("3",), (7,))


def test_no_objects_is_an_error(tmp_path: Path) -> None:
    spec = voc_tree(tmp_path / "v", {"a": xml()})
    for names in (None, ["cat"], []):
        with pytest.raises(ValueError, match="train: expected at least one annotated object, got none"):
            open_dataset(spec, names)
    (tmp_path / "v/Annotations/a.xml").write_text(xml(thing("cat", 1, 1, 9, 9)))
    with pytest.raises(ValueError, match="expected objects of the classes dog, got only cat"):
        open_dataset(spec, ["dog"])
    with pytest.raises(ValueError, match="no data set: expected at least one annotated object"):
        open_datasets([])
