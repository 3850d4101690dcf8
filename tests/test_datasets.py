"""Test the reading of VOC and COCO, joining, and what is said of files that are not as they should be."""

from __future__ import annotations

import importlib.util
import itertools
import json
import logging
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from detector.datasets import open_dataset, open_datasets
from tests.contracts import check_dataset

REPOSITORY = Path(__file__).resolve().parent.parent
IDS = itertools.count(1)


def load_tool(name: str) -> ModuleType:
    """Import a program of tools/ by its path."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def xml(*objects: str, size: str = "<size><width>60</width><height>40</height><depth>3</depth></size>") -> str:
    return f"<annotation>{size}{''.join(objects)}</annotation>"


def thing(name: str, *box: Any, difficult: str = "<difficult>0</difficult>") -> str:
    keys = ("xmin", "ymin", "xmax", "ymax")
    inside = "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, box, strict=True))
    return f"<object><name>{name}</name>{difficult}<bndbox>{inside}</bndbox></object>"


def voc_tree(root: Path, annotations: dict[str, str], suffix: str = ".jpg") -> str:
    """Write a VOC tree of grey images of 60 x 40 pixels with the split `train`; return its name."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name, text in annotations.items():
        Image.new("RGB", (60, 40)).save(root / "JPEGImages" / f"{name}{suffix}")
        (root / "Annotations" / f"{name}.xml").write_text(text, encoding="utf-8")
    (root / "ImageSets/Main/train.txt").write_text("\n".join(annotations) + "\n")
    return f"voc:{root}:train"


def coco_tree(root: Path, annotations: list[dict[str, Any]], **tables: Any) -> str:
    """Write two grey images of 60 x 40 pixels and a COCO file with categories 7 (couch) and 90 (zebra)."""
    (root / "images").mkdir(parents=True)
    images = [{"id": 5, "file_name": "a.jpg", "width": 60, "height": 40}]
    images.append({"id": 3, "file_name": "b.png", "width": 60, "height": 40})
    for image in images:
        Image.new("RGB", (60, 40)).save(root / "images" / str(image["file_name"]))
    categories = [{"id": 7, "name": "couch"}, {"id": 90, "name": "zebra"}, {"id": 91, "name": "unseen"}]
    content = {"images": images, "categories": categories, "annotations": annotations, **tables}
    (root / "instances.json").write_text(json.dumps(content))
    return f"coco:{root / 'instances.json'}:{root / 'images'}"


def test_voc_boxes_become_exclusive_and_zero_based(tmp_path: Path) -> None:
    objects = [
        thing("Cat", 1, 1, 60, 40),
        thing("dog", 2.5, "3.25", 10, 12, difficult="<difficult>1</difficult>"),
        thing("cat", 5, 6, 7, 8, difficult=""),
        thing("zebra", 5, 6, 7, 8, difficult="<difficult/><part><name>head</name></part>"),
    ]
    dataset = open_dataset(voc_tree(tmp_path / "VOC2007", {"000012": xml(*objects), "000013": xml()}))
    check_dataset(dataset, ("cat", "dog", "zebra"))
    first, second = dataset
    assert first.image_id == "VOC2007_000012"
    assert first.truth.boxes.tolist() == [[0, 0, 60, 40], [1.5, 2.25, 10, 12], [4, 5, 7, 8], [4, 5, 7, 8]]
    assert first.truth.labels.tolist() == [0, 1, 0, 2]
    assert first.truth.difficult.tolist() == [False, True, False, False]
    assert len(second.truth) == 0
    assert second.truth.size == (40, 60)


def test_boxes_without_area_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = [thing("cat", 5, 5, 5, 9), thing("cat", 9, 5, 4, 9), thing("cat", 61, 5, 80, 9)]
    spec = voc_tree(tmp_path / "v", {"a": xml(*bad, thing("cat", 0, 0, 99, 99))})
    with caplog.at_level(logging.WARNING):
        dataset = open_dataset(spec)
    check_dataset(dataset, ["cat"])
    assert dataset.dropped == 3
    assert dataset[0].truth.boxes.tolist() == [[0, 0, 60, 40]]
    assert [re.split(", repaired: |; the first: ", record.message)[:2] for record in caplog.records] == [
        ["2 boxes of no area", "left out"],
        ["1 boxes wholly outside of the image", "left out"],
        ["1 boxes partly outside of the image", "clipped to the image"],
    ]
    assert all("a.xml" in record.message for record in caplog.records)


@pytest.mark.parametrize("size", ["", "<size/>", "<size><width>0</width><height>0</height></size>"])
def test_a_size_that_is_missing_is_read_from_the_image(tmp_path: Path, size: str) -> None:
    spec = voc_tree(tmp_path / "v", {"a": xml(thing("cat", 1, 1, 9, 9), size=size)}, suffix=".png")
    assert open_dataset(spec)[0].truth.size == (40, 60)
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees
    Image.new("RGB", (60, 40)).save(tmp_path / "v/JPEGImages/a.png", exif=exif)
    assert open_dataset(spec)[0].truth.size == (60, 40)
    (tmp_path / "v/JPEGImages/a.png").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"a\.png: expected an image"):
        open_dataset(spec)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (xml(thing("cat", 1, 1, 9, 9))[:-9], "expected VOC XML, got a damaged or truncated file"),
        ("", "expected VOC XML, got a damaged or truncated file"),
        ("\x00garbage", "expected VOC XML, got a damaged or truncated file"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "expected VOC XML, got a damaged"),
        ("<html></html>", "expected VOC XML with the root <annotation>, got <html>"),
        (xml(thing("cat", "nan", 1, 9, 9)), "expected a finite number in <bndbox><xmin> of every <object>, got 'nan'"),
        (xml(thing("cat", 1, 1, "inf", 9)), "<xmax> of every <object>, got 'inf'"),
        (xml(thing("cat", 1, "one", 9, 9)), "<ymin> of every <object>, got 'one'"),
        (xml("<object><name>cat</name></object>"), "<xmin> of every <object>, got ''"),
        (xml(thing(" ", 1, 1, 9, 9)), "expected a <name> in every <object>"),
        (xml(thing("cat", 1, 1, 9, 9, difficult="<difficult>yes</difficult>")), "expected 0 or 1 in <difficult>"),
    ],
)
def test_damaged_xml_is_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    spec = voc_tree(tmp_path / "v", {"a": content})
    with pytest.raises(ValueError) as caught:
        open_dataset(spec)
    assert str(tmp_path / "v/Annotations/a.xml") in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_are_named(tmp_path: Path) -> None:
    root = tmp_path / "v"
    spec = voc_tree(root, {"a": xml(thing("cat", 1, 1, 9, 9))})
    with pytest.raises(FileNotFoundError, match=r"val\.txt: expected .*; the splits here: train"):
        open_dataset(f"voc:{root}:val")
    (root / "JPEGImages/a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.jpg: expected an image \(.jpg, .jpeg or .png\)"):
        open_dataset(spec)
    (root / "Annotations/a.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.xml: expected a VOC annotation, got no such file"):
        open_dataset(spec)
    with pytest.raises(FileNotFoundError, match="JPEGImages: expected the folder of a VOC tree"):
        open_dataset(f"voc:{tmp_path}:train")


def test_split_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cat = xml(thing("cat", 1, 1, 9, 9))
    voc_tree(tmp_path / "v", {"a": cat, "b": cat, "c d 1": cat})
    lists = tmp_path / "v/ImageSets/Main"
    (lists / "plain.txt").write_text("c d 1\na\na\n", encoding="utf-8-sig")
    (lists / "empty.txt").write_text("\n\n")
    (lists / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    (lists / "cat_train.txt").write_text("a  1\nb -1\n")
    assert [s.path.stem for s in open_dataset(f"voc:{tmp_path / 'v'}:cat_train")] == ["a"]
    with caplog.at_level(logging.WARNING):
        assert [s.image_id for s in open_dataset(f"voc:{tmp_path / 'v'}:plain")] == ["v_c_d_1", "v_a"]
    assert "1 images listed more than once, repaired: read once; the first: " in caplog.text
    for name, message in (("empty", "expected one image name per line"), ("bytes", "expected a text file")):
        with pytest.raises(ValueError, match=rf"{name}\.txt: {message}"):
            open_dataset(f"voc:{tmp_path / 'v'}:{name}")


@pytest.mark.parametrize("spec", ["", "voc", "voc:x", "voc::train", "coco:a.json", "zip:a:b", "voc:x:"])
def test_names_that_are_none_are_refused(spec: str) -> None:
    with pytest.raises(ValueError, match=r"expected voc:ROOT:SPLIT or coco:JSON:IMAGES"):
        open_dataset(spec)


@pytest.mark.skipif(os.name == "nt", reason="a file name cannot hold a colon on Windows")
def test_paths_may_hold_colons(tmp_path: Path) -> None:
    cat = xml(thing("cat", 1, 1, 9, 9))
    assert len(open_dataset(voc_tree(tmp_path / "C:v", {"a": cat}))) == 1
    assert len(open_dataset(coco_tree(tmp_path / "D:c", [row(5, 7, [1, 2, 3, 4])]))) == 2


def row(image: int, category: int, box: Any, **more: Any) -> dict[str, Any]:
    return {"id": next(IDS), "image_id": image, "category_id": category, "bbox": box, **more}


def test_coco_boxes_and_crowds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [row(5, 90, [1.5, 2, 3, 4.25]), row(3, 7, [50, 30, 20, 20], iscrowd=1), row(5, 7, [0, 0, 60, 40])]
    rows += [row(5, 7, [4, 4, 0, 9]), row(99, 7, [0, 0, 1, 1])]
    with caplog.at_level(logging.WARNING):
        dataset = open_dataset(coco_tree(tmp_path, rows))
    check_dataset(dataset, ("sofa", "zebra"))
    assert [s.image_id for s in dataset] == ["images_b", "images_a"]  # in the order of their ids
    assert dataset[1].truth.boxes.tolist() == [[1.5, 2, 4.5, 6.25], [0, 0, 60, 40]]
    assert dataset[1].truth.labels.tolist() == [1, 0]
    assert dataset[0].truth.boxes.tolist() == [[50, 30, 60, 40]]
    assert dataset[0].truth.difficult.tolist() == [True]
    assert dataset.dropped == 1
    assert len(caplog.records) == 3  # a box without area, an image that is not listed, a box partly outside


@pytest.mark.parametrize(
    ("rows", "tables", "message"),
    [
        ([row(5, 8, [1, 1, 2, 2])], {}, "expected a listed category in every annotation, got id 8"),
        ([row(5, 7, [1, 1, 2])], {}, "expected four finite numbers as bbox"),
        ([row(5, 7, [1, 1, float("nan"), 2])], {}, "expected four finite numbers as bbox"),
        ([row(5, 7, None)], {}, "expected four finite numbers as bbox"),
        ([{"id": 1}], {}, "expected COCO images, categories and annotations, got no 'image_id' in entry 1"),
        ([], {"images": [3]}, "expected COCO images, categories and annotations, got another type"),
        ([], {"images": []}, "expected at least one image, got none"),
        ([], {"categories": None}, "expected COCO JSON with the lists images, annotations, categories"),
    ],
)
def test_damaged_coco_files_are_refused(tmp_path: Path, rows: Any, tables: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        open_dataset(coco_tree(tmp_path, rows, **tables))
    assert str(tmp_path / "instances.json") in str(caught.value)
    assert message in str(caught.value)


def test_coco_files_that_are_truncated_or_missing(tmp_path: Path) -> None:
    spec = coco_tree(tmp_path, [row(5, 7, [1, 1, 2, 2])])
    file = tmp_path / "instances.json"
    text = file.read_text()
    for content, message in ((text[:-20], "damaged or truncated"), ("[1]", "with the lists"), ("", "damaged")):
        file.write_text(content)
        with pytest.raises(ValueError, match=f"instances.json: expected COCO JSON.*{message}"):
            open_dataset(spec)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"instances\.json: expected a COCO annotation file"):
        open_dataset(spec)
    file.write_text(text)
    (tmp_path / "images/b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.png: expected an image that .*instances\.json lists"):
        open_dataset(spec)
    with pytest.raises(FileNotFoundError, match="elsewhere: expected the folder with the images"):
        open_dataset(f"coco:{file}:{tmp_path / 'elsewhere'}")


def test_joining_goes_by_class_name(tmp_path: Path) -> None:
    voc = voc_tree(tmp_path / "v", {"a": xml(thing("sofa", 1, 1, 9, 9), thing("cat", 1, 1, 9, 9))})
    coco = coco_tree(tmp_path / "c", [row(5, 7, [1, 1, 8, 8]), row(5, 90, [1, 1, 8, 8])])
    both = open_datasets([voc, coco])
    check_dataset(both, ("cat", "sofa", "zebra"))
    assert [s.truth.labels.tolist() for s in both] == [[1, 0], [], [1, 2]]
    chosen = open_datasets([voc, coco], ["Couch", "airplane"])
    check_dataset(chosen, ("Couch", "airplane"))
    assert [s.truth.labels.tolist() for s in chosen] == [[0], [], [0]]
    assert chosen.ignored == 2


def test_ids_stay_unique_and_no_image_is_joined_twice(tmp_path: Path) -> None:
    cat = xml(thing("cat", 1, 1, 9, 9))
    specs = [voc_tree(tmp_path / part / "VOC2007", {"a b": cat, "a_b": cat}) for part in ("x", "y")]
    both = open_datasets(specs)
    check_dataset(both)
    assert all(re.fullmatch(r"VOC2007_a_b-[0-9a-f]{8}", s.image_id) for s in both)
    turned = open_datasets(specs[::-1])
    assert {s.path: s.image_id for s in both} == {s.path: s.image_id for s in turned}  # caches go by these names
    voc_tree(tmp_path / "z" / "VOC2007", {"A": cat, "c": cat})
    mixed = open_datasets([f"voc:{tmp_path / 'z' / 'VOC2007'}:train", voc_tree(tmp_path / "voc2007", {"a": cat})])
    ids = [s.image_id for s in mixed]
    assert ids[1] == "VOC2007_c"
    assert len({image_id.casefold() for image_id in ids}) == 3
    with pytest.raises(ValueError, match=r"a b\.jpg: expected every image in one of the data sets only"):
        open_datasets([specs[0], specs[0]])


def test_the_ids_of_one_coco_file_are_kept(tmp_path: Path) -> None:
    """Give ids only where one file has them for all classes; take an alias and a class without objects."""
    rows = [row(7, 90, [1, 1, 8, 8]), row(139, 3, [2, 2, 9, 9])]
    images = [{"id": 139, "file_name": "a.jpg", "width": 60, "height": 40}, {"id": 7, "file_name": "b.png"}]
    categories = [{"id": 90, "name": "Couch"}, {"id": 3, "name": "zebra"}, {"id": 8, "name": "cat"}]
    coco = coco_tree(tmp_path / "c", rows, images=images, categories=categories)
    dataset = open_dataset(coco)
    assert dataset.class_names == ("sofa", "zebra")
    assert dataset.category_ids == (90, 3)
    assert [(s.image_id, s.source_id) for s in dataset] == [("images_b", 7), ("images_a", 139)]
    chosen = open_dataset(coco, ["zebra", "cat", "sofa"])
    assert chosen.category_ids == (3, 8, 90)
    part = chosen.subset([1])
    assert (part.category_ids, part[0].source_id) == ((3, 8, 90), 139)
    assert open_dataset(coco, ["zebra", "dog"]).category_ids is None
    voc = voc_tree(tmp_path / "v", {"a": xml(thing("zebra", 1, 1, 9, 9))})
    other = coco_tree(tmp_path / "d", rows, images=images, categories=categories)
    for specs in ([voc], [coco, voc], [voc, coco], [coco, other]):
        assert open_datasets(specs).category_ids is None
    same_class = coco_tree(tmp_path / "e", rows, images=images, categories=[*categories, {"id": 9, "name": "sofa"}])
    assert open_dataset(same_class, ["sofa"]).category_ids is None
