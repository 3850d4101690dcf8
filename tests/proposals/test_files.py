"""Propose the boxes of JSON files, MATLAB files and VOC annotations that the tests write."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from detector.checkpoints import load_detector, save_detector
from detector.cli import main
from detector.config import Config
from detector.images import read_image
from detector.sppnet import SPPNet
from proposals.files import AnnotatedBoxes, JsonBoxes, MatlabBoxes
from proposals.registry import make_proposer
from proposals.store import settings_key
from proposals.structures import Proposals
from tests.contracts import awkward_images, check_proposer
from tests.proposals.matfiles import save_mat

IMAGE = torch.zeros(3, 60, 100, dtype=torch.uint8)


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


@pytest.mark.parametrize("compress", [True, False])
def test_matlab_boxes_are_one_based_and_inclusive_rows_before_columns(compress: bool, tmp_path: Path) -> None:
    """The pixels of rows 3 to 10 and columns 20 to 31, counted from 1."""
    entries = {
        "000005": [[3, 20, 10, 31]],
        "000007.jpg": np.zeros((0, 4)),
        "000009": np.array([[1, 1, 60, 100]], np.uint16),
    }
    proposer = MatlabBoxes(save_mat(tmp_path / "voc_2007_test.mat", entries, compress=compress))
    assert proposer(IMAGE, Path("a/000005.jpg")).boxes.tolist() == [[19, 2, 31, 10]]
    assert proposer(IMAGE, Path("000007.jpg")).boxes.tolist() == [[0, 0, 100, 60]], "none is the whole image"
    assert proposer(IMAGE, Path("000009.png")).boxes.tolist() == [[0, 0, 100, 60]]


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


@pytest.mark.parametrize("kind", ["json", "mat"])
def test_images_are_looked_up_by_path_name_stem_and_number(kind: str, tmp_path: Path) -> None:
    """The width of its box tells which entry an image got."""
    names = ["a/cat.jpg", "cat.jpg", "cat", "139"]
    if kind == "json":
        (tmp_path / "a.json").write_text(json.dumps({name: [[0, 0, i + 1, 5]] for i, name in enumerate(names)}))
    else:
        save_mat(tmp_path / "a.mat", {name: [[1, 1, 5, i + 1]] for i, name in enumerate(names)})
    proposer = make_proposer(f"{kind}:{tmp_path / f'a.{kind}'}")
    asked = ["a/cat.jpg", "x/../a/cat.jpg", "b/cat.jpg", "b/cat.png", "val/000000000139.jpg"]
    assert [proposer(IMAGE, Path(path)).boxes[0, 2].item() for path in asked] == [1, 1, 2, 3, 4]


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
    (tmp_path / "one/Annotations/cat.xml").rename(tmp_path / "one/Annotations/cow.xml")
    changed.append(settings_key(AnnotatedBoxes(tmp_path / "one").settings))  # the boxes of another image
    keys = [json_keys[0], xml_keys[0], *changed, *(settings_key(MatlabBoxes(mat).settings) for mat in mats)]
    assert len(set(keys)) == len(keys)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{tmp_path}: expected a VOC tree with a folder Annotations, got none$"):
        AnnotatedBoxes(tmp_path)
    for kind in (JsonBoxes, MatlabBoxes):
        for path, got in ((tmp_path / "none", "no such file"), (tmp_path, "a folder")):
            with pytest.raises(FileNotFoundError, match=f"^{path}: expected a file of boxes, got {got}$"):
                kind(path)


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<annotation><object>", "expected VOC XML, got a damaged or truncated file"),
        ("<html></html>", "expected VOC XML with the root <annotation>, got <html>"),
        ("<annotation><object><bndbox><xmin>1</xmin></bndbox></object></annotation>", "expected four finite numbers"),
    ],
)
def test_damaged_annotations_are_named(xml: str, message: str, tmp_path: Path) -> None:
    file = save_xml(tmp_path, "cat", []) / "Annotations" / "cat.xml"
    file.write_text(xml)
    with pytest.raises(ValueError, match=f"^{file}: {message}"):
        AnnotatedBoxes(tmp_path)(IMAGE, Path("cat.jpg"))


def test_the_command_detects_in_the_boxes_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One photo has boxes in the file; the other has none and is told."""
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        settings = Config(shorter=128, longest=256, channels=8, hidden=16, readable_score=0.0)
        save_detector(SPPNet(settings, ("circle", "square")), tmp_path / "tiny.safetensors")
    pixels = np.random.default_rng(1).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    for name in ("one.png", "two.png"):
        Image.fromarray(pixels).save(name)
    boxes = [[30, 20, 90, 80], [0, 0, 60, 45], [100, 60, 150, 95]]
    Path("boxes.json").write_text(json.dumps({"one": boxes}))
    options = ["--out", "out", "--model", "tiny.safetensors", "--proposals", "json:boxes.json", "--json-only"]
    result = CliRunner().invoke(main, ["detect", "one.png", "two.png", *options])
    assert result.exit_code == 1
    (told,) = [line for line in result.stderr.splitlines() if not line.startswith("compiling kernels")]
    assert told.startswith("sppnet: two.png: ")
    assert told.endswith("expected an entry for it in boxes.json, got none")
    (entry,) = json.loads(Path("out/detections.json").read_text())
    clipped = Proposals(torch.tensor([*boxes[:2], [100, 60, 120, 90]], dtype=torch.float32))
    expected = load_detector("tiny.safetensors").predict(read_image("one.png"), clipped).to_dicts()
    assert entry["image"] == "one.png"
    assert entry["detections"] == expected
    assert expected
