"""Test the data sets of classification: folders, VOC's lists and XML, COCO, and how they are joined."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from detector.datasets import open_dataset
from detector.labels import LabelSet, open_labels


def photo(path: Path) -> Path:
    """Write a grey image of 9 x 6 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 6)).save(path)
    return path


def folders(root: Path, *names: str) -> str:
    for name in names:
        photo(root / name)
    return f"folder:{root}"


def voc(root: Path, objects: dict[str, list[tuple[str, int]]]) -> str:
    """Write a VOC tree whose XML has no size; objects: (class, difficult) of every image. Return its name."""
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>4</ymax></bndbox>"
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for image, items in objects.items():
        photo(root / "JPEGImages" / f"{image}.jpg")
        inside = "".join(f"<object><name>{n}</name><difficult>{d}</difficult>{box}</object>" for n, d in items)
        (root / "Annotations" / f"{image}.xml").write_text(f"<annotation>{inside}</annotation>")
    (root / "ImageSets/Main/train.txt").write_text("\n".join(objects))
    return f"voc:{root}:train"


def table(path: Path, text: str, encoding: str = "utf-8") -> str:
    path.write_text(text, encoding=encoding)
    return f"csv:{path}"


def check_labels(labels: LabelSet) -> None:
    """Check what holds of every data set: ids, files, types and values, and what a subset is."""
    ids = [sample.image_id for sample in labels]
    assert len({image_id.casefold() for image_id in ids}) == len(ids) == len(labels) > 0
    assert all(re.fullmatch(r"[\w-][\w.-]*", image_id) for image_id in ids)
    assert all(sample.path.is_file() for sample in labels)
    matrix = labels.matrix
    assert (matrix.shape, matrix.dtype) == ((len(labels), len(labels.class_names)), torch.int8)
    assert set(matrix.unique().tolist()) <= {-1, 0, 1}
    if labels.multi_label:
        with pytest.raises(ValueError, match="expected images of exactly one class each, got a multi-label data set"):
            _ = labels.single
    else:
        assert labels.single.dtype == torch.int64
        assert ((matrix == 1).sum(dim=1) == 1).all()
        assert (matrix != 0).all()
        assert labels.single.tolist() == [row.tolist().index(1) for row in matrix]
    part = labels.subset([len(labels) - 1, 0])
    assert [sample.image_id for sample in part] == [ids[-1], ids[0]]
    assert (part.class_names, part.multi_label) == (labels.class_names, labels.multi_label)
    assert labels.subset([]).matrix.shape == (0, len(labels.class_names))


def test_folders_are_read_as_torchvision_reads_them(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    names = ["dog/b.jpg", "dog/a.PNG", "airplane/x/2.jpg", "airplane/x/1.jpg", "airplane/9.jpg", "Zebra/a/b.bmp"]
    spec = folders(tmp_path / "set", *names)
    (tmp_path / "set/dog/notes.txt").write_text("none")
    labels = open_labels([spec])
    check_labels(labels)
    oracle = datasets.ImageFolder(str(tmp_path / "set"))
    assert list(labels.class_names) == oracle.classes == ["Zebra", "airplane", "dog"]
    assert [(str(s.path), k) for s, k in zip(labels, labels.single.tolist(), strict=True)] == oracle.samples
    assert labels[0].image_id == "set_Zebra_a_b"
    hidden = [".git/x.jpg", "dog/.x.jpg", "dog/.cache/x.jpg"]
    folders(tmp_path / "set", *hidden)
    assert len(open_labels([spec])) == 6
    assert len(open_labels(spec)) == 6


def test_links_in_folders_are_followed_once(tmp_path: Path) -> None:
    spec = folders(tmp_path / "set", "cat/a.jpg")
    photo(tmp_path / "elsewhere/b.jpg")
    (tmp_path / "set/cat/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/cat/round").symlink_to(tmp_path / "set/cat")
    assert [sample.path.name for sample in open_labels([spec])] == ["a.jpg", "b.jpg"]
    (tmp_path / "set/dog").symlink_to(tmp_path / "set/cat")
    with pytest.raises(ValueError, match=r"a\.jpg: expected every image in one of the data sets only, got it twice"):
        open_labels([spec])


def test_the_names_of_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = folders(tmp_path / "one", "airplane/1.jpg", "RBC/1.jpg", "RBC/2.jpg")
    second = folders(tmp_path / "two", "aeroplane/1.jpg", "T-Shirt/1.jpg")
    assert open_labels([first]).class_names == ("RBC", "airplane")
    both = open_labels([first, second])
    check_labels(both)
    assert both.class_names == ("aeroplane", "RBC", "T-Shirt")
    assert both.single.tolist() == [1, 1, 0, 2, 0]
    apart = open_labels([folders(tmp_path / "three", "tv/1.jpg", "television/1.jpg")])
    assert apart.class_names == ("television", "tv")
    with caplog.at_level("INFO"):
        given = open_labels([first], ["Aeroplane", "cat"])
    check_labels(given)
    assert given.class_names == ("Aeroplane", "cat")
    assert [(s.path.parent.name, s.labels.tolist()) for s in given] == [("airplane", [1, -1])]
    assert "expected images of the wanted classes, got 2 of the class RBC" in caplog.text


def test_plain_lists_are_labelled_by_the_objects(tmp_path: Path) -> None:
    objects = {
        "000012": [("cat", 0), ("dog", 1)],
        "000007": [("cat", 1), ("cat", 0)],
        "000020": [("Dog", 1), ("dog", 1)],
        "000021": [],
    }
    labels = open_labels([voc(tmp_path / "VOC2007", objects)])
    check_labels(labels)
    assert labels.class_names == ("cat", "dog")
    assert labels.multi_label
    assert [s.image_id for s in labels] == [f"VOC2007_{name}" for name in objects]
    assert labels.matrix.tolist() == [[1, 0], [1, -1], [-1, 0], [-1, -1]]


def test_lists_of_one_class_are_the_labels(tmp_path: Path) -> None:
    spec = voc(tmp_path / "VOC2007", {name: [("sheep", 0)] for name in ("000012", "000007", "000020")})
    lists = tmp_path / "VOC2007/ImageSets/Main"
    (lists / "cat_train.txt").write_text("000012 -1\n000007  0\n000020  1\n")
    (lists / "traffic_light_train.txt").write_text("000012  1\r\n000007 -1\r\n\r\n", encoding="utf-8-sig")
    (lists / "horse_val.txt").write_text("000012  1\n")
    (lists / "small_train.txt").write_text("000012\n")  # a plain list of another split
    (lists / "cow_small_train.txt").write_text("000012  1\n")  # and of one class in it
    labels = open_labels([spec])
    check_labels(labels)
    assert labels.class_names == ("cat", "traffic light")
    assert [s.image_id for s in labels] == ["VOC2007_000012", "VOC2007_000007", "VOC2007_000020"]
    assert labels.matrix.tolist() == [[-1, 1], [0, -1], [1, 0]]  # of the last no list of traffic lights says anything
    wanted = open_labels([spec], ["sheep", "cat"])
    assert wanted.matrix.tolist() == [[0, -1], [0, 0], [0, 1]]
    small = open_labels([f"voc:{tmp_path / 'VOC2007'}:small_train"])
    assert (small.class_names, small.matrix.tolist()) == (("cow",), [[1]])
    (lists / "bird_train.txt").write_text("000012 -1\n")
    with pytest.raises(
        ValueError, match="expected an image of every class, or the names of the classes, got no image of bird"
    ):
        open_labels([spec])
    assert open_labels([spec], ["bird", "cat"]).matrix.tolist() == [[-1, -1], [0, 0], [0, 1]]


def test_classes_without_images_and_images_that_occur_twice(tmp_path: Path) -> None:
    spec = folders(tmp_path / "set", "cat/1.jpg", "dog/1.jpg")
    (tmp_path / "set/owl").mkdir()
    with pytest.raises(
        ValueError, match="set: expected an image of every class, or the names of the classes, got no image of owl"
    ):
        open_labels([spec])
    assert open_labels([spec], ["owl", "dog", "cat"]).single.tolist() == [2, 1]
    with pytest.raises(ValueError, match="expected images of the classes cow, got only cat, dog"):
        open_labels([spec], ["cow"])
    with pytest.raises(ValueError, match="expected images of the classes owl, got only cat, dog"):
        open_labels([spec], ["owl"])
    joined = open_labels([spec, folders(tmp_path / "more", "Owl/1.jpg")])  # all classes have an image now
    assert joined.class_names == ("cat", "dog", "Owl")
    again = table(tmp_path / "list.csv", "path,label\nset/cat/1.jpg,cat\n")
    with pytest.raises(ValueError, match=r"1\.jpg: expected every image in one of the data sets only, got it twice"):
        open_labels([spec, again])
    for wrong in ("", "folder", "folder:", "voc:x", "voc::train", "zip:a", "coco:a.json"):
        with pytest.raises(ValueError, match="expected folder:ROOT, voc:ROOT:SPLIT, csv:FILE or coco:JSON:IMAGES"):
            open_labels([wrong])
    with pytest.raises(ValueError, match="no data set: expected at least one image with a class, got none"):
        open_labels([])


def test_coco_and_folders_joined(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 9, "height": 6} for i in (1, 2)]
    names = {7: "couch", 90: "zebra", 91: "unseen"}
    rows = [(1, 7, 1), (1, 90, 0), (1, 90, 1), (2, 7, 0)]  # image, category, iscrowd
    content = {
        "images": images,
        "categories": [{"id": number, "name": name} for number, name in names.items()],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": [0, 0, 3, 3], "iscrowd": crowd}
            for n, (i, c, crowd) in enumerate(rows)
        ],
    }
    for i in (1, 2):
        photo(tmp_path / f"images/{i}.jpg")
    (tmp_path / "instances.json").write_text(json.dumps(content))
    spec = f"coco:{tmp_path / 'instances.json'}:{tmp_path / 'images'}"
    labels = open_labels([spec])
    check_labels(labels)
    assert (labels.class_names, labels.matrix.tolist()) == (("sofa", "zebra"), [[0, 1], [1, -1]])
    assert labels.class_names == open_dataset(spec).class_names
    joined = open_labels([folders(tmp_path / "set", "Sofa/1.jpg", "cat/1.jpg"), spec])
    check_labels(joined)
    assert (joined.class_names, joined.multi_label) == (("cat", "sofa", "zebra"), True)
    assert joined.matrix.tolist() == [[-1, 1, -1], [1, -1, -1], [-1, 0, 1], [-1, 1, -1]]


def test_the_shared_photos_agree_with_their_xml(shared_data: Path) -> None:
    root = shared_data / "VOC2012"
    labels = open_labels([f"voc:{root}:val"])
    check_labels(labels)
    counts: Counter[tuple[str, int]] = Counter()
    for name in (root / "ImageSets/Main/val.txt").read_text().split():
        objects = ElementTree.parse(root / "Annotations" / f"{name}.xml").getroot().findall("object")
        easy = {o.findtext("name") for o in objects if o.findtext("difficult") != "1"}
        counts.update((str(o), 1) for o in easy)
        counts.update((str(o), 0) for o in {o.findtext("name") for o in objects} - easy)
    assert len(labels) == 300
    assert len(labels.class_names) == 20
    for name, column in zip(labels.class_names, labels.matrix.T, strict=True):
        for mark in (1, 0):
            assert int((column == mark).sum()) == counts[name, mark], name
    assert sum(number for (_, mark), number in counts.items() if mark == 0) > 10
