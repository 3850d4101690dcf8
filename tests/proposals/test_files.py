"""Propose the boxes of JSON files, MATLAB files and VOC annotations that the tests write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch

from proposals.files import AnnotatedBoxes, JsonBoxes, MatlabBoxes
from proposals.registry import make_proposer
from proposals.store import settings_key
from tests.contracts import awkward_images, check_proposer

IMAGE = torch.zeros(3, 60, 100, dtype=torch.uint8)


def cells(values: list[Any]) -> np.ndarray[Any, Any]:
    """Return a MATLAB cell array of one column."""
    array = np.empty((len(values), 1), object)
    for i, value in enumerate(values):
        array[i, 0] = value
    return array


def save_mat(path: Path, entries: dict[str, Any], names: str = "images", boxes: str = "boxes") -> Path:
    content = {names: cells(list(entries)), boxes: cells([np.asarray(value) for value in entries.values()])}
    scipy.io.savemat(path, content, do_compression=True)
    return path


def save_xml(root: Path, stem: str, boxes: list[tuple[float, ...]]) -> Path:
    folder = root / "Annotations"
    folder.mkdir(parents=True, exist_ok=True)
    keys = ("xmin", "ymin", "xmax", "ymax")
    objects = [
        f"<object><name>cat</name><difficult>{number % 2}</difficult><bndbox>"
        + "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, box, strict=True))
        + "</bndbox></object>"
        for number, box in enumerate(boxes)
    ]
    (folder / f"{stem}.xml").write_text(f"<annotation>{''.join(objects)}</annotation>")
    return root


def path_of(number: int) -> Path:
    return Path(f"photos/{number:06d}.jpg")


@pytest.mark.parametrize("kind", ["json", "mat", "annotations"])
def test_they_keep_the_contract(kind: str, tmp_path: Path) -> None:
    """Boxes of the file lie inside, partly outside and wholly outside of the images of the contract."""
    boxes = [[0, 0, 1, 1], [-3, -2, 40, 30], [5, 4, 9000, 9000], [7000, 7000, 7010, 7020], [0, 0, 1, 1]]
    count = len(awkward_images()) + 1
    stems = [path_of(number).stem for number in range(count)]
    one_based = [(x1 + 1, y1 + 1, x2, y2) for x1, y1, x2, y2 in boxes]
    if kind == "json":
        (tmp_path / "a.json").write_text(json.dumps({f"{stem}.jpg": boxes for stem in stems}))
        name = f"json:{tmp_path / 'a.json'}"
    elif kind == "mat":
        rows = [[y1, x1, y2, x2] for x1, y1, x2, y2 in one_based]
        name = f"mat:{save_mat(tmp_path / 'a.mat', dict.fromkeys(stems, rows))}"
    else:
        for stem in stems:
            save_xml(tmp_path, stem, [box for box in one_based if box[2] > box[0]])
        name = f"annotations:{tmp_path}"
    proposer = make_proposer(name)
    assert proposer.name == kind
    check_proposer(proposer, [IMAGE], path_of)
    expected = [[0, 0, 1, 1], [0, 0, 40, 30], [5, 4, 100, 60]]
    if kind == "annotations":
        expected = expected[1:]  # a box of one pixel has xmax = xmin, and VOC's readers drop it
    assert proposer(IMAGE, path_of(0)).boxes.tolist() == expected


def test_matlab_boxes_are_one_based_and_inclusive_rows_before_columns(tmp_path: Path) -> None:
    """The pixels of rows 3 to 10 and columns 20 to 31, counted from 1."""
    entries = {
        "000005": [[3, 20, 10, 31]],
        "000007.jpg": np.zeros((0, 4)),
        "000009": np.array([[1, 1, 60, 100]], np.uint16),
    }
    proposer = MatlabBoxes(save_mat(tmp_path / "voc_2007_test.mat", entries))
    assert proposer(IMAGE, Path("a/000005.jpg")).boxes.tolist() == [[19, 2, 31, 10]]
    assert proposer(IMAGE, Path("000007.jpg")).boxes.tolist() == [[0, 0, 100, 60]], "none is the whole image"
    assert proposer(IMAGE, Path("000009.png")).boxes.tolist() == [[0, 0, 100, 60]]


def test_a_row_of_cells_is_as_good_as_a_column(tmp_path: Path) -> None:
    content = {"images": cells(["a", "b"]).T, "boxes": cells([np.ones((1, 4)), 2 * np.ones((2, 4))]).T}
    scipy.io.savemat(tmp_path / "row.mat", content)
    assert MatlabBoxes(tmp_path / "row.mat")(IMAGE, Path("b.jpg")).boxes.tolist() == [[1, 1, 2, 2]]


def test_annotations_are_one_based_and_inclusive(tmp_path: Path) -> None:
    root = save_xml(tmp_path, "000012", [(20, 3, 31, 10), (1.5, 2, 9, 9.25), (5, 5, 5, 9), (1, 1, 100, 60)])
    save_xml(tmp_path, "empty", [])
    proposer = AnnotatedBoxes(root)
    assert proposer(IMAGE, Path("JPEGImages/000012.jpg")).boxes.tolist() == [
        [19, 2, 31, 10],
        [0.5, 1, 9, 9.25],
        [0, 0, 100, 60],
    ]
    assert proposer(IMAGE, Path("empty.jpg")).boxes.tolist() == [[0, 0, 100, 60]]


def test_json_boxes_keep_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [{"image_id": 7, "bbox": [10, 20, 5, 6.5]}, {"image_id": 7, "bbox": [0, 0, 99, 50]}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    boxes = JsonBoxes(tmp_path / "a.json")(IMAGE, Path("0007.jpg")).boxes
    assert boxes.tolist() == [[10, 20, 15, 26.5], [0, 0, 99, 50]]


def test_an_image_without_entry_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"cat.jpg": [[0, 0, 5, 5]]}')
    save_xml(tmp_path, "cat", [(1, 1, 5, 5)])
    for proposer, source in (
        (JsonBoxes(tmp_path / "a.json"), tmp_path / "a.json"),
        (MatlabBoxes(save_mat(tmp_path / "a.mat", {"cat": [[1, 1, 5, 5]]})), tmp_path / "a.mat"),
        (AnnotatedBoxes(tmp_path), tmp_path / "Annotations"),
    ):
        with pytest.raises(ValueError, match=f"^x/cow.jpg: expected an entry for it in {source}, got none$"):
            proposer(IMAGE, Path("x/cow.jpg"))
        with pytest.raises(
            ValueError, match=f"^{source}: expected the path of an image to find its boxes by, got none$"
        ):
            proposer(IMAGE)


def test_settings_follow_the_content_and_not_the_place(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.json").write_text('{"cat": [[0, 0, 5, 5]]}')
        save_xml(tmp_path / name, "cat", [(1, 1, 5, 5)])
    json_keys = [settings_key(JsonBoxes(tmp_path / n / f"{n}.json").settings) for n in ("one", "two")]
    xml_keys = [settings_key(AnnotatedBoxes(tmp_path / n).settings) for n in ("one", "two")]
    assert json_keys[0] == json_keys[1]
    assert xml_keys[0] == xml_keys[1]
    (tmp_path / "two" / "two.json").write_text('{"cat": [[0, 0, 5, 6]]}')
    save_xml(tmp_path / "two", "dog", [(1, 1, 5, 5)])
    changed = [
        settings_key(JsonBoxes(tmp_path / "two/two.json").settings),
        settings_key(AnnotatedBoxes(tmp_path / "two").settings),
    ]
    mats = [save_mat(tmp_path / f"{i}.mat", {"cat": [[1, 1, 5, i]]}) for i in (7, 8)]
    keys = [json_keys[0], xml_keys[0], *changed, *(settings_key(MatlabBoxes(mat).settings) for mat in mats)]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("entries", "names", "message"),
    [
        ({"a": [[1, 2, 3]]}, "images", r"a: expected boxes of shape \(R, 4\), finite numbers, got \(1, 3\)"),
        ({"a": [[1, 2, 3, np.nan]]}, "images", "expected boxes of shape"),
        ({"a": ["text"]}, "images", "expected boxes of shape"),
        ({"a": [[1, 2, 3, 4]]}, "photos", "expected a MATLAB file with the cell arrays images and boxes, got none"),
    ],
)
def test_matlab_files_of_another_kind_are_refused(
    entries: dict[str, Any], names: str, message: str, tmp_path: Path
) -> None:
    file = save_mat(tmp_path / "a.mat", entries, names)
    with pytest.raises(ValueError, match=message) as caught:
        MatlabBoxes(file)
    assert str(caught.value).startswith(f"{file}: ")


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "hdf5", "uneven", "twice"])
def test_damaged_matlab_files_are_named_in_one_sentence(damage: str, tmp_path: Path) -> None:
    file = save_mat(tmp_path / "a.mat", {f"{i:06d}": np.arange(400).reshape(100, 4) + 1 for i in range(20)})
    content = file.read_bytes()
    if damage == "uneven":
        scipy.io.savemat(file, {"images": cells(["a", "b"]), "boxes": cells([np.ones((1, 4))])})
    elif damage == "twice":
        scipy.io.savemat(file, {"images": cells(["a", "a"]), "boxes": cells([np.ones((1, 4))] * 2)})
    else:
        version = content[:124] + b"\x00\x02" + content[126:]  # the two bytes that say 7.3
        file.write_bytes({"empty": b"", "text": b"x1 y1 x2 y2\n" * 20, "cut": content[:-200], "hdf5": version}[damage])
    with pytest.raises(ValueError, match="expected a MATLAB file with the cell arrays images and boxes") as caught:
        MatlabBoxes(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)
    if damage == "hdf5":
        assert "save it with -v7" in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{tmp_path}: expected a VOC tree with a folder Annotations, got none$"):
        AnnotatedBoxes(tmp_path)
    for kind in (JsonBoxes, MatlabBoxes):
        with pytest.raises(FileNotFoundError) as caught:
            kind(tmp_path / "none")
        assert str(tmp_path / "none") in str(caught.value)


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<annotation><object>", "expected VOC XML, got a damaged or truncated file"),
        ("<annotation><object><bndbox><xmin>1</xmin></bndbox></object></annotation>", "expected four finite numbers"),
    ],
)
def test_damaged_annotations_are_named(xml: str, message: str, tmp_path: Path) -> None:
    file = save_xml(tmp_path, "cat", []) / "Annotations" / "cat.xml"
    file.write_text(xml)
    with pytest.raises(ValueError, match=f"^{file}: {message}"):
        AnnotatedBoxes(tmp_path)(IMAGE, Path("cat.jpg"))
