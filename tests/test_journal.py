"""Check that a journal remembers every finished item, whenever its writer was killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from detector.journal import Journal
from tests.sources import REPOSITORY

ITEMS = {"a": 1, "bild ä": [1.5, None], 'quote " and \n line': {"x": [1, 2]}, "b": ""}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made" / "journal.jsonl"


def written(path: Path, key: str = "k") -> Journal:
    journal = Journal(path, key)
    for name, value in ITEMS.items():
        journal.add(name, value)
    return journal


def test_a_new_journal_writes_nothing_until_it_is_told_something(path: Path) -> None:
    assert Journal(path, "k").items == {}
    assert not path.parent.exists()


def test_items_are_there_when_it_is_opened_again(path: Path) -> None:
    assert written(path).items == ITEMS
    again = Journal(path, "k")
    assert again.items == ITEMS
    again.add("c", 3)
    assert Journal(path, "k").items == {**ITEMS, "c": 3}


def test_an_item_written_twice_has_its_last_value(path: Path) -> None:
    written(path).add("a", 2)
    assert Journal(path, "k").items == {**ITEMS, "a": 2}


def test_another_key_begins_anew_but_not_before_it_writes(path: Path) -> None:
    written(path)
    before = path.read_bytes()
    other = Journal(path, "other")
    assert other.items == {}
    assert path.read_bytes() == before
    other.add("z", 0)
    assert Journal(path, "other").items == {"z": 0}
    assert Journal(path, "k").items == {}


def test_cut_anywhere_it_keeps_the_whole_lines_and_goes_on(path: Path) -> None:
    written(path)
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        journal = Journal(path, "k")
        lines = max(0, whole[:length].count(b"\n") - 1)
        assert list(journal.items.items()) == list(ITEMS.items())[:lines]
        journal.add("next", 7)
        assert list(Journal(path, "k").items.items()) == [*list(ITEMS.items())[:lines], ("next", 7)]


def test_what_follows_a_damaged_line_is_forgotten(path: Path) -> None:
    written(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\x00\x00\xff\n", *lines[2:]]))
    journal = Journal(path, "k")
    assert journal.items == {"a": 1}
    journal.add("b", 2)
    assert Journal(path, "k").items == {"a": 1, "b": 2}


@pytest.mark.parametrize("content", [b"", b"\n", b"hello\n", b"[1]\n", b"\x00" * 50])
def test_a_file_that_is_no_journal_begins_anew(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    journal = Journal(path, "k")
    assert journal.items == {}
    journal.add("a", 1)
    assert Journal(path, "k").items == {"a": 1}


def test_remove(path: Path) -> None:
    journal = written(path)
    journal.remove()
    assert not path.exists()
    journal.remove()
    assert Journal(path, "k").items == {}


def test_a_value_that_is_no_json_leaves_the_journal_as_it_was(path: Path) -> None:
    journal = written(path)
    with pytest.raises(TypeError):
        journal.add("bad", object())
    assert Journal(path, "k").items == journal.items == ITEMS


def test_a_killed_writer_loses_at_most_the_item_it_was_writing(path: Path) -> None:
    program = (
        "import sys, itertools; from pathlib import Path; from detector.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]), 'k')\n"
        "for i in itertools.count():\n"
        "    journal.add(str(i), 'x' * 5000); print(i, flush=True)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(path)], cwd=REPOSITORY, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    for _ in range(20):
        writer.stdout.readline()
    time.sleep(0.01)
    writer.send_signal(signal.SIGKILL)
    told = 20 + len(writer.stdout.read().splitlines())
    writer.stdout.close()
    assert writer.wait() == -signal.SIGKILL
    items = Journal(path, "k").items
    assert told <= len(items) <= told + 1
    assert list(items) == [str(i) for i in range(len(items))]
