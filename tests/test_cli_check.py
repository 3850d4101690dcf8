"""Check `sppnet check`: its table, its file, its exit code, and that Ctrl-C leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from detector.cli import main
from tests.sources import REPOSITORY
from tests.test_datasets import coco_tree, row, thing, voc_tree, xml

CAT = thing("cat", 1, 1, 9, 9)


def check(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["check", *map(str, arguments)])


def test_a_sound_set_gives_one_line(tmp_path: Path) -> None:
    specs = voc_tree(tmp_path / "v", {"a": xml(CAT)}), coco_tree(tmp_path / "c", [row(5, 7, [1, 1, 2, 2])])
    result = check(*specs)
    assert (result.exit_code, result.stdout) == (0, "3 images, 2 objects of 2 classes: 0 refused, 0 repaired\n")


def test_findings_are_counted_and_named(tmp_path: Path) -> None:
    """List a few of each kind, all with --all, and give the exit code of what is refused."""
    empty = [thing("cat", 5, 5, 5, number) for number in (5, 6, 7, 8)]
    spec, report = voc_tree(tmp_path / "v", {"a": xml(CAT, *empty), "b": xml(CAT)}), tmp_path / "new" / "found.json"
    result = check(spec, "--json", report)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    file = tmp_path / "v/Annotations/a.xml"
    wrong = f"  {file}: expected xmin < xmax and ymin < ymax, got xmin 5, ymin 5, xmax 5"
    named = [f"{wrong}, ymax {number} in object {number - 3}, cat" for number in (5, 6, 7, 8)]
    assert lines[0].split() == ["found", "count", "what", "sppnet", "does"]
    assert lines[2].split() == ["boxes", "of", "no", "area", "4", "repaired:", "left", "out"]
    assert lines[4:9] == ["boxes of no area:", *named[:3], "  ... and 1 more (--all)"]
    assert lines[10:] == ["2 images, 2 objects of 1 class: 0 refused, 4 repaired", f"written: {report}"]
    content = json.loads(report.read_text())
    assert [row["object"] for row in content["findings"]] == [f"object {number}, cat" for number in (2, 3, 4, 5)]
    assert set(named) < set(check(spec, "--all").stdout.splitlines())
    (tmp_path / "v/JPEGImages/a.jpg").unlink()
    (tmp_path / "v/JPEGImages/b.jpg").write_bytes(b"none")
    result = check(spec)
    assert result.exit_code == 1
    assert [line for line in result.stdout.splitlines() if ".jpg" in line] == [
        f"  {tmp_path / 'v/JPEGImages/a.jpg'}: expected an image (.jpg, .jpeg or .png), got no such file",
        f"  {tmp_path / 'v/JPEGImages/b.jpg'}: expected an image, got a file that is none or is damaged",
    ]
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("missing images  "))
    assert " ".join(line.split()[2:]) == "1 refused: restore the file, or take the image off the list"
    assert result.stdout.endswith("2 images, 0 objects of 0 classes: 2 refused, 4 repaired\n")


def test_pixels_are_read_if_wanted(tmp_path: Path) -> None:
    spec = voc_tree(tmp_path / "v", {"a": xml(CAT)})
    path = tmp_path / "v/JPEGImages/a.jpg"
    Image.effect_noise((60, 40), 90).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:-400])
    assert [check(spec, *more).exit_code for more in ([], ["--pixels"])] == [0, 1]


def test_classes_of_a_file(tmp_path: Path) -> None:
    spec = voc_tree(tmp_path / "v", {"a": xml(CAT, thing("Circle", 1, 1, 9, 9))})
    (tmp_path / "names.txt").write_text("CIRCLE\n\n dog \n", encoding="utf-8-sig")
    result = check(spec, "--classes", tmp_path / "names.txt")
    assert result.exit_code == 0
    assert "a.xml: expected objects of the wanted classes, got 1 of the class cat\n" in result.stdout
    assert result.stdout.endswith("1 image, 1 object of 1 class: 0 refused, 1 repaired\n")


def test_classes_of_a_model(tmp_path: Path) -> None:
    """Take the classes of the shipped model, which knows cats and no circles."""
    spec = voc_tree(tmp_path / "v", {"a": xml(CAT, thing("Circle", 1, 1, 9, 9))})
    result = check(spec, "--model", "voc-lite0")
    assert result.exit_code == 0
    assert "got 1 of the class Circle\n" in result.stdout
    assert "of the class cat" not in result.stdout


def test_usage(tmp_path: Path) -> None:
    """Tell mistakes in one line: exit code 2 for usage, 1 for files."""
    spec = voc_tree(tmp_path / "v", {"a": xml(CAT)})
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    for arguments, code, message in (
        ([], 2, "Missing argument 'DATA...'"),
        (["zip:a"], 1, "zip:a: expected voc:ROOT:SPLIT or coco:JSON:IMAGES"),
        ([spec, "--classes", tmp_path / "none.txt"], 1, "none.txt: expected a file with one class name per line"),
        ([spec, "--classes", tmp_path / "empty.txt"], 1, "empty.txt: expected one class name per line, got none"),
        ([spec, "--classes", tmp_path / "bytes.txt"], 1, "bytes.txt: expected a text file"),
        ([spec, "--classes", "x", "--model", "y"], 2, "expected --classes or --model, got both"),
        ([spec, "--model", "nothing"], 1, "expected a model among"),
        ([spec, "--json", tmp_path / "empty.txt" / "a.json"], 2, "--json: expected a folder that can be written"),
    ):
        result = check(*arguments)
        assert (result.exit_code, result.stdout) == (code, "")
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_names_that_no_terminal_shows(tmp_path: Path) -> None:
    images = [{"id": 5, "file_name": "a\n\x1b[31m\ud800.jpg"}]
    result = check(coco_tree(tmp_path, [], images=images))
    assert result.exit_code == 1
    assert r"a [31m\ud800.jpg: expected an image that" in result.stdout


@pytest.mark.slow
def test_progress_is_shown_and_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    """Decode one large photo under many names, and stop when the bar appears."""
    names = [f"p{number}" for number in range(3000)]
    spec = voc_tree(tmp_path / "v", {"p0": xml(CAT, size="")})
    first, report, errors = tmp_path / "v/JPEGImages/p0.jpg", tmp_path / "found.json", tmp_path / "errors.txt"
    Image.effect_noise((1500, 1000), 90).convert("RGB").save(first)
    for name in names[1:]:
        os.link(first, first.with_name(f"{name}.jpg"))
        os.link(tmp_path / "v/Annotations/p0.xml", tmp_path / f"v/Annotations/{name}.xml")
    (tmp_path / "v/ImageSets/Main/train.txt").write_text("\n".join(names))
    program = "from detector.cli import main; main()"
    command = [sys.executable, "-c", program, "check", spec, "--pixels", "--json", str(report)]
    with errors.open("w") as stderr, subprocess.Popen(command, stderr=stderr, cwd=REPOSITORY) as process:
        deadline = time.monotonic() + 100
        while "checking" not in errors.read_text() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    assert process.returncode == 130
    assert errors.read_text().splitlines()[-1] == "interrupted"
    assert "Traceback" not in errors.read_text()
    assert not report.exists()
    assert list(tmp_path.glob(".*")) == []
