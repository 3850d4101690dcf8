"""Check that files are written whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from detector.files import remove_parts, replacing, write_bytes, write_json, write_text
from tests.sources import REPOSITORY


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_contents_are_written_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    write_bytes(folder / "bytes", b"\x00\r\n\xff")
    write_text(folder / "text", "ä\r\nb\n")
    write_json(folder / "json", {"b": [1, 2.5], "a": "ä"})
    assert (folder / "bytes").read_bytes() == b"\x00\r\n\xff"
    assert (folder / "text").read_bytes() == "ä\r\nb\n".encode()
    assert json.loads((folder / "json").read_text(encoding="utf-8")) == {"b": [1, 2.5], "a": "ä"}
    assert (folder / "json").read_bytes().endswith(b"}\n")
    assert names(folder) == ["bytes", "json", "text"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_files_have_the_mode_of_any_new_file(tmp_path: Path, umask: int, mode: int) -> None:
    """Write as others do: a file that safetensors makes, or a temporary one, is for its owner alone."""
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "bytes", b"x")
        with replacing(tmp_path / "map.safetensors") as beside:
            save_file({"a": torch.zeros(2)}, beside)
        with replacing(tmp_path / "moved") as beside:
            handle, name = tempfile.mkstemp(dir=tmp_path)
            os.close(handle)
            Path(name).replace(beside)
    finally:
        os.umask(before)
    assert names(tmp_path) == ["bytes", "map.safetensors", "moved"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {mode}


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with replacing(target) as beside:
        beside.write_text("ne")
        assert target.read_text() == "old"
        assert beside.parent == tmp_path
        beside.write_text("new")
    assert target.read_text() == "new"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_writer_that_fails_leaves_no_trace(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(error), replacing(target) as beside:
        beside.write_text("half")
        raise error
    assert names(tmp_path) == ["file"]
    assert target.read_text() == "old"


def test_a_writer_that_writes_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "file"):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": object()}])
def test_what_json_does_not_have_is_refused_and_the_old_file_stays(tmp_path: Path, value: object) -> None:
    target = tmp_path / "file.json"
    write_json(target, [1])
    with pytest.raises((ValueError, TypeError)):
        write_json(target, value)
    assert json.loads(target.read_text()) == [1]
    assert names(tmp_path) == ["file.json"]


def test_a_folder_in_the_place_of_the_file_stays(tmp_path: Path) -> None:
    (tmp_path / "file" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="file"):
        write_text(tmp_path / "file", "text")
    assert names(tmp_path) == ["file"]
    assert names(tmp_path / "file") == ["inside"]


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(OSError, match="folder"):
        write_text(tmp_path / "folder" / "file", "text")
    assert (tmp_path / "folder").read_text() == "a file"


def test_writers_at_the_same_time_do_not_mix(tmp_path: Path) -> None:
    target = tmp_path / "file"
    contents = [bytes([65 + i]) * 200_000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: write_bytes(target, content), contents * 5))
    assert target.read_bytes() in contents
    assert names(tmp_path) == ["file"]


def test_a_killed_writer_leaves_the_old_file_and_a_part_that_can_be_removed(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    program = (
        "import os, signal, sys; from detector.files import replacing\n"
        "with replacing(sys.argv[1]) as beside:\n"
        "    beside.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(target)], cwd=REPOSITORY, check=False)
    assert done.returncode == -signal.SIGKILL
    assert target.read_text() == "old"
    assert len(names(tmp_path)) == 2
    write_text(tmp_path / "file2", "other")
    others = tmp_path / ".file2.0123abcd.part"
    others.write_text("somebody else's")
    remove_parts(target)
    assert names(tmp_path) == sorted(["file", "file2", others.name])


def test_removing_parts_where_there_are_none(tmp_path: Path) -> None:
    remove_parts(tmp_path / "nowhere" / "file")
    assert names(tmp_path) == []
