"""Test the class names and their aliases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.classes import COCO_CLASSES, COCO_TO_VOC, VOC_CLASSES, VOC_TO_COCO, canonical, match_classes, spellings


def test_the_lists_are_whole() -> None:
    assert len(VOC_CLASSES) == len(set(VOC_CLASSES)) == 20
    assert list(VOC_CLASSES) == sorted(VOC_CLASSES)
    assert len(COCO_CLASSES) == len(set(COCO_CLASSES)) == 80
    assert COCO_CLASSES[0] == "person"
    assert COCO_CLASSES[-1] == "toothbrush"


def test_every_class_of_voc_is_one_of_coco() -> None:
    assert {VOC_TO_COCO.get(name, name) for name in VOC_CLASSES} <= set(COCO_CLASSES)
    assert {canonical(name) for name in COCO_CLASSES} >= set(VOC_CLASSES)
    assert len({canonical(name) for name in COCO_CLASSES}) == 80
    assert {voc: coco for coco, voc in COCO_TO_VOC.items()} == VOC_TO_COCO
    assert match_classes(COCO_CLASSES, VOC_CLASSES).keys() == {VOC_TO_COCO.get(name, name) for name in VOC_CLASSES}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Airplane", "aeroplane"),
        ("aeroplane", "aeroplane"),
        ("couch", "sofa"),
        ("motorcycle", "motorbike"),
        ("Dining_Table", "diningtable"),
        ("dining-table", "diningtable"),
        (" potted  plant ", "pottedplant"),
        ("TV", "tvmonitor"),
        ("tv monitor", "tvmonitor"),
        ("Traffic_Light", "traffic light"),
        ("RBC", "rbc"),
    ],
)
def test_canonical(name: str, expected: str) -> None:
    assert canonical(name) == expected


@given(st.one_of(st.text(max_size=12), st.sampled_from([*VOC_CLASSES, *COCO_CLASSES])))
def test_canonical_twice_is_canonical_once(name: str) -> None:
    assert canonical(canonical(name)) == canonical(name)


def test_names_are_matched_to_the_classes_wanted() -> None:
    assert match_classes(["Sofa", "couch", "zebra", "AIRPLANE"], ["airplane", "couch"]) == {
        "Sofa": 1,
        "couch": 1,
        "AIRPLANE": 0,
    }
    assert match_classes([], ["cat"]) == {}
    assert match_classes(["cat"], []) == {}


@pytest.mark.parametrize("wanted", [["tv", "cat", "tvmonitor"], ["cat", "Cat"], ["cat", " "]])
def test_classes_wanted_twice_or_without_name_are_refused(wanted: list[str]) -> None:
    with pytest.raises(ValueError, match="expected distinct class names"):
        match_classes(["cat"], wanted)


def test_spellings() -> None:
    assert spellings(["couch", "Sofa", "WBC", "wbc", "Traffic Light", "RBC"]) == ("RBC", "sofa", "traffic light", "WBC")
