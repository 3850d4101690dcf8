"""Check which files a command line means, and how pictures are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from detector.cli.inputs import PictureNames, find_images


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder: photos/{b.JPG,a.png,notes.txt,.hidden.jpg,deep/c.webp}, [1].jpg, empty/."""
    for name in ("photos/b.JPG", "photos/a.png", "photos/notes.txt", "photos/.hidden.jpg", "photos/deep/c.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "[1].jpg").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("paths", "files"),
    [
        (["photos"], ["photos/a.png", "photos/b.JPG"]),
        (["photos/"], ["photos/a.png", "photos/b.JPG"]),
        (["photos/*"], ["photos/a.png", "photos/b.JPG", "photos/deep/c.webp", "photos/notes.txt"]),
        (["photos/**/*.webp"], ["photos/deep/c.webp"]),
        (["photos/notes.txt"], ["photos/notes.txt"]),
        (["[1].jpg"], ["[1].jpg"]),
        (["photos/b.JPG", "photos", "./photos/a.png"], ["photos/b.JPG", "photos/a.png"]),
    ],
)
def test_files_folders_and_globs(tree: Path, paths: list[str], files: list[str]) -> None:
    assert find_images(paths) == (files, [])


def test_paths_that_stand_for_nothing_are_named(tree: Path) -> None:
    files, problems = find_images(["no.jpg", "photos/a.png", "empty", "*.gif"])
    assert files == ["photos/a.png"]
    assert [problem.split(":")[0] for problem in problems] == ["no.jpg", "empty", "*.gif"]


def test_links_keep_their_names_and_the_home_folder_is_found(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("link.png").symlink_to("photos/a.png")
    assert find_images(["photos/a.png", "link.png"]) == (["photos/a.png", "link.png"], [])
    monkeypatch.setenv("HOME", str(tree))
    assert find_images(["~/*.png"]) == ([str(tree / "link.png")], [])


def test_picture_names_are_unique_and_no_inputs(tmp_path: Path) -> None:
    inputs = [str(tmp_path / name) for name in ("a/cat.jpg", "b/cat.webp", "c/Cat.bmp", "d/cat.png", "out/dog.jpg")]
    names = PictureNames(tmp_path / "out", inputs)
    chosen = [names.choose(path, (30, 40)) for path in inputs]
    assert [path.name for path in chosen] == ["cat.jpg", "cat-2.jpg", "Cat-3.jpg", "cat.png", "dog-2.jpg"]
    assert {path.parent for path in chosen} == {tmp_path / "out"}
    assert names.choose("wide.bmp", (10, 70000)).name == "wide.png"


def test_an_input_behind_a_link_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    (tmp_path / "out").symlink_to(tmp_path / "photos")
    names = PictureNames(tmp_path / "out", [str(tmp_path / "photos" / "cat.jpg")])
    assert names.choose(str(tmp_path / "photos" / "cat.jpg"), (3, 4)).name == "cat-2.jpg"
