"""Test that all that is wrong with data sets is found and named, and that opening them does what is said of it."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detector.datasets import open_datasets
from detector.findings import KINDS
from detector.inspection import inspect_datasets
from tests.test_datasets import coco_tree, thing, voc_tree, xml

CAT = thing("cat", 1, 1, 9, 9)
XML, JSON, LIST = "v/Annotations/b.xml", "c/instances.json", "v/ImageSets/Main/train.txt"
COUCH = {"id": 1, "image_id": 5, "category_id": 7, "bbox": [1, 2, 3, 4]}
SMALLER = "<size><width>30</width><height>20</height></size>"

# What a file gets as its content (None: it is removed; a list: rows for the lists of the COCO file), and what is found:
# kind, file, object, count.
FAULTS: list[tuple[str, Any, tuple[str, str, str, int]]] = [
    (LIST, None, ("missing-list", LIST, "", 1)),
    (LIST, "\n", ("damaged-list", LIST, "", 1)),
    (LIST, "a\nb\na\nc\na\n", ("listed-twice", LIST, "", 2)),
    (JSON, None, ("missing-list", JSON, "", 1)),
    (JSON, "{", ("damaged-list", JSON, "", 1)),
    (XML, None, ("missing-annotation", XML, "", 1)),
    (XML, "<annotation><object>", ("damaged-annotation", XML, "", 1)),
    (XML, xml(CAT, thing("cat", "nan", 1, 2, 3)), ("damaged-object", XML, "object 2", 1)),
    (XML, xml(CAT, thing("dog", 9, 1, 4, 3)), ("no-area", XML, "object 2, dog", 1)),
    (XML, xml(CAT, thing("dog", 61, 1, 70, 3)), ("outside", XML, "object 2, dog", 1)),
    (XML, xml(CAT, thing("dog", 0, 1, 70, 3)), ("partly-outside", XML, "object 2, dog", 1)),
    (XML, xml(CAT, size=SMALLER), ("other-size", XML, "", 1)),
    (XML, xml(CAT, size=""), ("no-size", XML, "", 1)),
    ("v/JPEGImages/b.jpg", None, ("missing-image", "v/JPEGImages/b.jpg", "", 1)),
    ("v/JPEGImages/b.jpg", "none", ("damaged-image", "v/JPEGImages/b.jpg", "", 1)),
    ("c/images/b.png", None, ("missing-image", "c/images/b.png", "", 1)),
    (JSON, ("annotations", {"id": 2}), ("damaged-entry", JSON, "entry 2 of annotations", 1)),
    (JSON, ("annotations", {**COUCH, "id": 3, "bbox": [1, 1, 0, 2]}), ("no-area", JSON, "annotation 3, couch", 1)),
    (JSON, ("annotations", COUCH), ("repeated-object-id", JSON, "annotation 1", 1)),
    (JSON, ("annotations", {**COUCH, "id": 4, "image_id": 9}), ("unlisted-image", JSON, "annotation 4", 1)),
    (JSON, ("annotations", {**COUCH, "id": 5, "category_id": 9}), ("unknown-category", JSON, "annotation 5", 1)),
    (JSON, ("annotations", {**COUCH, "id": 6, "bbox": [1]}), ("damaged-object", JSON, "annotation 6", 1)),
    (JSON, ("images", {"id": 5, "file_name": "c.png"}), ("repeated-image-id", JSON, "entry 3 of images", 1)),
    (JSON, ("categories", {"id": 7, "name": "cat"}), ("repeated-category-id", JSON, "entry 4 of categories", 1)),
    (
        JSON,
        ("images", {"id": 6, "file_name": "b.png", "width": 60, "height": 40}),
        ("repeated-image", "c/images/b.png", "", 1),
    ),
]


def sets(root: Path) -> list[str]:
    """Write a VOC tree of three images with a cat each and a COCO set with a couch, without a fault."""
    voc = voc_tree(root / "v", {name: xml(CAT) for name in ("a", "b", "c")})
    return [voc, coco_tree(root / "c", [COUCH])]


def damage(root: Path, file: str, content: Any) -> None:
    path = root / file
    if content is None:
        path.unlink()
    elif isinstance(content, str):
        path.write_text(content)
    else:
        tables = json.loads(path.read_text())
        tables[content[0]].append(content[1])
        path.write_text(json.dumps(tables))


def test_sound_sets_have_no_findings(tmp_path: Path) -> None:
    inspection = inspect_datasets(sets(tmp_path), pixels=True)
    assert inspection.findings == ()
    assert (inspection.images, inspection.objects) == (5, {"cat": 3, "sofa": 1})


@pytest.mark.parametrize(("file", "content", "expected"), FAULTS)
def test_opening_does_what_is_said_of_a_finding(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, content: Any, expected: tuple[str, str, str, int]
) -> None:
    """Refuse what is said to be refused with the same sentence; log what is said to be repaired, with its rule."""
    specs = sets(tmp_path)
    damage(tmp_path, file, content)
    inspection = inspect_datasets(specs)
    (found,) = inspection.findings
    assert (found.kind, found.file, found.object, found.count) == (
        expected[0],
        str(tmp_path / expected[1]),
        *expected[2:],
    )
    kind = KINDS[found.kind]
    if kind.refused:
        assert (inspection.refused, inspection.repaired) == (found.count, 0)
        with pytest.raises(FileNotFoundError if kind.absent else ValueError) as caught:
            open_datasets(specs)
        assert str(caught.value) == found.sentence
        return
    assert (inspection.refused, inspection.repaired) == (0, found.count)
    with caplog.at_level(logging.INFO):
        dataset = open_datasets(specs)
    assert [record.message for record in caplog.records] == [
        f"{found.count} {kind.title}, {kind.outcome}; the first: {found.sentence}"
    ]
    labels = [dataset.class_names[label] for truth in dataset.truths for label in truth.labels.tolist()]
    assert {name: labels.count(name) for name in dataset.class_names} == inspection.objects


def test_every_kind_of_finding_is_tested() -> None:
    others = {"unknown-class", "no-objects", "damaged-pixels"}  # below
    assert {expected[0] for _, _, expected in FAULTS} | others == KINDS.keys()


def test_all_faults_at_once_are_listed(tmp_path: Path) -> None:
    """Find each fault among all others, in the order of KINDS, and go on behind those that end a file."""
    specs = sets(tmp_path)
    entries = [(content, found) for file, content, found in FAULTS if isinstance(content, tuple)]
    for content, _ in entries:
        damage(tmp_path, JSON, content)
    damage(tmp_path, "v/Annotations/a.xml", xml(thing("cat", "x", 1, 2, 3), thing(" ", 1, 1, 2, 2), CAT, size=SMALLER))
    damage(tmp_path, "v/JPEGImages/a.jpg", None)
    damage(tmp_path, XML, None)
    damage(tmp_path, "v/JPEGImages/c.jpg", "none")
    inspection = inspect_datasets([*specs, f"voc:{tmp_path / 'nowhere'}:train"])
    found = [(f.kind, str(Path(f.file).relative_to(tmp_path)), f.object, f.count) for f in inspection.findings]
    others = [
        ("missing-list", "nowhere/JPEGImages", "", 1),
        ("missing-list", "nowhere/Annotations", "", 1),
        ("damaged-object", "v/Annotations/a.xml", "object 1", 1),
        ("damaged-object", "v/Annotations/a.xml", "object 2", 1),
        ("missing-image", "v/JPEGImages/a.jpg", "", 1),
        ("missing-annotation", XML, "", 1),
        ("damaged-image", "v/JPEGImages/c.jpg", "", 1),
    ]
    assert sorted(found) == sorted([*(entry for _, entry in entries), *others])
    order = list(KINDS)
    assert [order.index(finding.kind) for finding in inspection.findings] == sorted(
        order.index(finding.kind) for finding in inspection.findings
    )
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        open_datasets(specs)
    assert str(caught.value) in [finding.sentence for finding in inspection.findings]


def test_classes_that_are_not_known(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    specs = sets(tmp_path)
    inspection = inspect_datasets(specs, ["Couch", "dog"])
    (found,) = inspection.findings
    assert (found.kind, found.count, found.file) == ("unknown-class", 3, str(tmp_path / "v/Annotations/a.xml"))
    assert found.text == "expected objects of the wanted classes, got 3 of the class cat"
    assert inspection.objects == {"Couch": 1, "dog": 0}
    with caplog.at_level(logging.INFO):
        assert open_datasets(specs, ["Couch", "dog"]).ignored == 3
    assert caplog.messages == [f"3 objects of unknown classes, repaired: left out; the first: {found.sentence}"]
    (none,) = inspect_datasets(specs, ["dog"]).findings
    assert none.kind == "no-objects"
    with pytest.raises(ValueError, match=f"^{re.escape(none.sentence)}$"):
        open_datasets(specs, ["dog"])


def test_truncated_images_are_found_by_their_pixels(tmp_path: Path) -> None:
    """Cut a JPEG behind its header: opening cannot see it, reading the image refuses it."""
    specs = sets(tmp_path)
    path = tmp_path / "v/JPEGImages/b.jpg"
    Image.effect_noise((60, 40), 90).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:-400])
    assert inspect_datasets(specs).findings == ()
    (found,) = inspect_datasets(specs, pixels=True).findings
    assert (found.kind, found.file) == ("damaged-pixels", str(path))
    assert KINDS[found.kind].refused


def test_the_same_set_twice_is_found(tmp_path: Path) -> None:
    voc, coco = sets(tmp_path)
    inspection = inspect_datasets([voc, coco, voc])
    assert inspection.counts == {"repeated-image": 3}
    assert {Path(finding.file).name for finding in inspection.findings} == {"a.jpg", "b.jpg", "c.jpg"}


def test_progress_and_json(tmp_path: Path) -> None:
    specs, steps = sets(tmp_path), []
    damage(tmp_path, XML, xml(CAT, thing("d\x85og", 9, 1, 4, 3)))
    inspection = inspect_datasets(specs, None, True, lambda done, total: steps.append((done, total)))
    assert steps == [(1, 3), (2, 3), (3, 3), (1, 2), (2, 2), *((done, 5) for done in range(1, 6))]
    report = json.loads(json.dumps(inspection.to_dict()))
    assert (report["images"], report["refused"], report["repaired"], report["data"]) == (5, 0, 1, specs)
    assert report["kinds"] == {"no-area": {"title": "boxes of no area", "count": 1, "outcome": "repaired: left out"}}
    (found,) = report["findings"]
    assert found["text"] == "expected xmin < xmax and ymin < ymax, got xmin 9, ymin 1, xmax 4, ymax 3"


def test_the_two_boxes_of_bccd(shared_data: Path) -> None:
    """Find the two boxes of no area that the shared data are known for, and nothing else."""
    specs = [f"voc:{shared_data / 'custom/BCCD'}:{split}" for split in ("trainval", "test")]
    inspection = inspect_datasets(specs)
    assert [(Path(f.file).stem, f.object) for f in inspection.findings] == [
        ("BloodImage_00338", "object 13, RBC"),
        ("BloodImage_00343", "object 4, RBC"),
    ]
    assert inspection.counts == {"no-area": 2}
    assert inspection.images == 364
    assert open_datasets(specs).dropped == 2
