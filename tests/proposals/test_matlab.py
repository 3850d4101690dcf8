"""Read MATLAB files of boxes, those of other kinds and damaged ones too."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from proposals.matlab import read_matlab
from tests.proposals.matfiles import cells, save_mat
from tests.sources import REPOSITORY


def test_a_row_of_cells_is_as_good_as_a_column(tmp_path: Path) -> None:
    content = {"images": cells(["a", "b"]).T, "boxes": cells([np.ones((1, 4)), 2 * np.ones((2, 4))]).T}
    scipy.io.savemat(tmp_path / "row.mat", content)
    assert read_matlab(tmp_path / "row.mat")["b"].tolist() == [[2, 2, 2, 2]] * 2


@pytest.mark.parametrize(
    ("entries", "names", "message"),
    [
        (
            {"a": [[1, 2, 3]]},
            "images",
            r"a: expected boxes as an \(R, 4\) array of numbers, got a \(1, 3\) array",
        ),
        ({"a": [[1, 2, 3, np.nan]]}, "images", "a: expected finite box coordinates, got NaN or infinity"),
        ({"a": ["text"]}, "images", r"got a \(1,\) text"),
        ({"a": [[1, 2, 3, 4]]}, "photos", "N x 1 or 1 x N, got images none and boxes a .1, 1. cell array$"),
    ],
)
def test_matlab_files_of_another_kind_are_refused(
    entries: dict[str, Any], names: str, message: str, tmp_path: Path
) -> None:
    file = save_mat(tmp_path / "a.mat", entries, names)
    with pytest.raises(ValueError, match=message) as caught:
        read_matlab(file)
    assert str(caught.value).startswith(f"{file}: ")


@pytest.mark.parametrize(
    ("images", "boxes", "got"),
    [
        (np.array(["ab", "cd"]), cells([np.ones((1, 4))] * 2), "got images a (2,) text and boxes a (2, 1) cell array"),
        (cells(["a", "b"] * 2).reshape(2, 2), cells([np.ones((1, 4))] * 4).reshape(2, 2), "images a (2, 2) cell array"),
        ({"name": "a"}, cells([np.ones((1, 4))]), "got images a (1, 1) struct and"),
        (cells(["a"]), np.ones((1, 4)), "boxes a (1, 4) array of float64"),
        (cells([cells(["a"])]), cells([np.ones((1, 4))]), "another name for every image, got a (1, 1) cell array"),
        (cells([5.0]), cells([np.ones((1, 4))]), "another name for every image, got a (1, 1) array of float64"),
        (cells([""]), cells([np.ones((1, 4))]), "another name for every image, got an empty one"),
        (cells(["a"]), cells([scipy.sparse.csc_matrix(np.eye(4))]), "a: expected boxes as an (R, 4) array of numbers"),
    ],
)
def test_variables_of_another_kind_are_told(images: Any, boxes: Any, got: str, tmp_path: Path) -> None:
    file = tmp_path / "a.mat"
    scipy.io.savemat(file, {"images": images, "boxes": boxes})
    with pytest.raises(ValueError, match=f"^{file}: .*{re.escape(got)}"):
        read_matlab(file)


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
        read_matlab(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)
    if damage == "hdf5":
        assert "save it with -v7" in str(caught.value)


DAMAGE = """
import random, sys
from pathlib import Path
from proposals.matlab import read_matlab
file, generator, refused = Path(sys.argv[1]), random.Random(3), 0
whole = file.read_bytes()
for number in range(1500):
    content = bytearray(whole[: generator.randrange(len(whole))] if number % 10 == 0 else whole)
    for _ in range(generator.choice([1, 1, 3])):
        if content:
            content[generator.randrange(len(content))] = generator.randrange(256)
    file.write_bytes(content)
    try:
        read_matlab(file)
    except ValueError as error:
        assert str(error).startswith(f"{file}: ") and " expected " in str(error) and "\\n" not in str(error), error
        refused += 1
print(refused)
"""


@pytest.mark.parametrize("compress", [True, False])
def test_no_damage_to_a_matlab_file_is_worse_than_a_sentence(compress: bool, tmp_path: Path) -> None:
    """In a process of its own, since scipy alone crashes on some of these files."""
    entries = {f"{number:06d}": np.arange(20.0).reshape(5, 4) for number in range(4)}
    file = save_mat(tmp_path / "a.mat", entries, compress=compress)
    command = [sys.executable, "-c", DAMAGE, str(file)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 500
