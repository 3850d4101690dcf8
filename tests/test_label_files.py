"""Test the reading of CSV files, and what is said of lists and files that are damaged or missing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from detector.labels import open_labels
from tests.test_labels import check_labels, photo, table, voc


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv(tmp_path: Path, encoding: str) -> None:
    paths = [photo(tmp_path / name) for name in ("in/a.jpg", "in/b,1.jpg", "in/ç.png", "a.jpg")]
    text = f'weight,Label,path\n1,tabby cat,a.jpg\n2,dog,"b,1.jpg"\n\n3,dog,ç.png\n4,écureuil,{paths[3]}\n'
    labels = open_labels([table(tmp_path / "in/list.csv", text, encoding)])
    check_labels(labels)
    assert labels.class_names == ("dog", "tabby cat", "écureuil")
    assert not labels.multi_label
    assert labels.single.tolist() == [1, 0, 0, 2]
    assert [s.path for s in labels] == [path.resolve() for path in paths]
    assert [s.image_id.rpartition("_")[2] for s in labels] == ["a", "1", "ç", "a"]


def test_csv_ids_that_would_be_shared_are_told_apart(tmp_path: Path) -> None:
    for name in ("in/a.jpg", "x/in/a.jpg", "in/b.jpg"):
        photo(tmp_path / name)
    spec = table(tmp_path / "list.csv", "path,label\nin/a.jpg,cat\nx/in/a.jpg,cat\nin/b.jpg,cat\n")
    ids = [sample.image_id for sample in open_labels([spec])]
    assert [re.sub("-[0-9a-f]{8}$", "-#", image_id) for image_id in ids] == ["in_a-#", "in_a-#", "in_b"]
    assert ids[0] != ids[1]


@pytest.mark.parametrize(
    ("rows", "matrix"),
    [
        ("a.jpg,cat; dog\nb.jpg,dog\n", [[1, 1], [-1, 1]]),
        ("a.jpg,dog|cat|\nb.jpg,dog\n", [[1, 1], [-1, 1]]),
        ("a.jpg,cat\nb.jpg,dog\n./a.jpg,dog\n", [[1, 1], [-1, 1]]),
        ("a.jpg,\nb.jpg,dog;cat\n", [[-1, -1], [1, 1]]),
        ("a.jpg,dog\nb.jpg,cat\na.jpg,dog\n", None),
    ],
)
def test_csv_of_several_classes_an_image(tmp_path: Path, rows: str, matrix: list[list[int]] | None) -> None:
    photo(tmp_path / "a.jpg"), photo(tmp_path / "b.jpg")
    labels = open_labels([table(tmp_path / "list.csv", f"path,label\n{rows}")])
    check_labels(labels)
    assert labels.class_names == ("cat", "dog")
    if matrix is None:
        assert labels.single.tolist() == [1, 0]
    else:
        assert labels.multi_label
        assert labels.matrix.tolist() == matrix


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"file,label\na.jpg,cat\n", "expected a header with path and label, got file, label in line 1"),
        (b"path,label,path\n", "expected a header with path and label, got path, label, path in line 1"),
        (b"", "expected a header with path and label, got none in line 1"),
        (b"path,label\n", "expected at least one row below the header, got none"),
        (b"path,label\na.jpg,cat\na.jpg\n", "expected 2 cells as in the header, got 1 in line 3"),
        (b"path,label\na.jpg,cat,dog\n", "expected 2 cells as in the header, got 3 in line 2"),
        (b"path,label\n ,cat\n", "expected the path of an image, got none in line 2"),
        (b'path,label\na.jpg,"cat\n', "expected CSV, got a damaged file"),
        (b"path,label\na.jpg,\xff\xfe\n", "expected a CSV file in UTF-8, got other bytes"),
        (b"path,label\na.jpg,\n", "expected at least one image with a class, got none"),
        (b"path,label\nno.jpg,cat\n", "lists in line 2, got no such file"),
        (b"path,label\na\x01.jpg,cat\n", "lists in line 2, got no such file"),
    ],
)
def test_damaged_csv_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    photo(tmp_path / "a.jpg")
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        open_labels([f"csv:{tmp_path / 'list.csv'}"])
    assert message in str(caught.value)
    assert str(tmp_path / "list.csv") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_lists_and_missing_files_are_refused_by_name(tmp_path: Path) -> None:
    root = tmp_path / "VOC2007"
    spec = voc(root, {"1": [("cat", 0)], "2": []})
    path = root / "ImageSets/Main/cat_train.txt"
    for text, message in (
        ("1 -1\n2\n", r"cat_train\.txt: expected an image name and one of -1, 0 and 1, got '2' in line 2"),
        ("1 -1\n2 1\n1 1\n", r"cat_train\.txt: expected one mark for every image, got -1 and 1 for 1 in line 3"),
        ("1 1\n3 1\n", r"3\.jpg: expected an image that .*cat_train\.txt lists, got no such file"),
    ):
        path.write_text(text)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            open_labels([spec])
    path.write_bytes(b"\xff\xfe1")
    with pytest.raises(
        ValueError, match=r"cat_train\.txt: expected a text file with lines like `000012 -1`, got other"
    ):
        open_labels([spec])
    path.unlink()
    (root / "JPEGImages/2.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"2\.jpg: expected an image"):
        open_labels([spec])
    for spec, message in (
        (f"csv:{tmp_path}/none.csv", r"none\.csv: expected a CSV file, got no such file"),
        (f"folder:{tmp_path}/none", "none: expected a folder with one folder of images per class, got No such file"),
        (f"folder:{root}/Annotations", "Annotations: expected one folder of images per class, got none"),
        (f"voc:{root}:val", r"val\.txt: expected the list of a split's images"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            open_labels([spec])
