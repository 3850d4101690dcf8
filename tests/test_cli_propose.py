"""Check `sppnet propose`: its files, names, workers, what it says of bad ones, and that it continues if stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from detector.cli import main
from detector.datasets import open_dataset
from detector.images import read_image
from proposals.fast import SelectiveSearch
from proposals.registry import make_proposer
from proposals.store import ProposalStore, load_proposals
from tests.sources import REPOSITORY
from tests.toy import draw, stop


def propose(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["propose", *map(str, arguments)])


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a toy set of 8 photos, 2 of them for testing."""
    return draw(tmp_path_factory.mktemp("data") / "toy", 8)


def boxes_in(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.rglob("*.npz")}


def test_every_photo_gets_a_file_of_its_boxes(toy: Path, tmp_path: Path) -> None:
    photos = sorted((toy / "JPEGImages").iterdir())[:3]
    result = propose(*photos, "--out", tmp_path / "out", "--workers", "1")
    assert result.exit_code == 0, result.output
    (folder,) = (path for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert folder == ProposalStore(tmp_path / "out", SelectiveSearch()).folder
    index = json.loads((folder / "index.json").read_text())
    assert index == {str(photo): f"{photo.stem}.npz" for photo in photos}
    assert json.loads((folder / "settings.json").read_text()) == dict(SelectiveSearch().settings)
    counts = []
    for photo in photos:
        found = load_proposals(folder / index[str(photo)])
        assert found is not None
        assert torch.equal(found.boxes, SelectiveSearch()(read_image(photo)).boxes)
        counts.append(len(found))
    assert f"3 images, {sorted(counts)[1]} boxes each (median), " in result.stdout
    assert result.stdout.rstrip().endswith(str(folder))


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(toy: Path, tmp_path: Path) -> None:
    for workers in ("1", "3"):
        out = tmp_path / workers
        assert propose(toy / "JPEGImages", "--out", out, "--proposals", "single", "--workers", workers).exit_code == 0
    assert boxes_in(tmp_path / "1") == boxes_in(tmp_path / "3")
    assert len(boxes_in(tmp_path / "1")) == 8


def test_annotated_photos_fill_the_cache_of_training(toy: Path, tmp_path: Path) -> None:
    spec = f"voc:{toy}:test"
    assert propose(spec, "--out", tmp_path / "cache" / "proposals", "--workers", "1").exit_code == 0
    store = ProposalStore(tmp_path / "cache" / "proposals", make_proposer("fast"))
    samples = open_dataset(spec).samples
    assert len(samples) == 2
    for sample in samples:
        found = store.load(sample.image_id)
        assert found is not None
        assert torch.equal(found.boxes, SelectiveSearch()(read_image(sample.path)).boxes)
    command = ["evaluate", "--data", spec, "--cache", str(tmp_path / "cache"), "--threads", "1"]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1, "the toy set has no class of the shipped model"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")} == before


def test_what_is_there_is_not_computed_again_and_what_is_damaged_is(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = (toy / "JPEGImages", "--out", out, "--proposals", "windows", "--workers", "1")
    assert propose(*command).exit_code == 0
    files = sorted(out.rglob("*.npz"))
    contents = boxes_in(out)
    files[0].write_bytes(contents[files[0].name][:50])
    files[1].unlink()
    before = {path: path.stat().st_mtime_ns for path in files[2:]}
    assert propose(*command).exit_code == 0
    assert boxes_in(out) == contents
    assert {path: path.stat().st_mtime_ns for path in files[2:]} == before
    assert "8 images" in propose(*command).stdout


def test_equal_and_unsafe_names_get_names_of_their_own(tmp_path: Path) -> None:
    names = ["a/cat.png", "b/Cat.png", "b/two words.png", "b/-.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (30, 20)).save(tmp_path / name)
    command = [tmp_path / name for name in names]
    assert propose(*command, "--out", tmp_path / "out", "--proposals", "windows", "--workers", "1").exit_code == 0
    (index,) = (json.loads(path.read_text()) for path in (tmp_path / "out").rglob("index.json"))
    files = list(index.values())
    assert len({file.casefold() for file in files}) == len(files) == 4
    assert files[0].startswith("cat-")
    assert files[1].startswith("Cat-")
    assert files[2].startswith("image-")
    assert sorted(files) == sorted(path.name for path in (tmp_path / "out").rglob("*.npz"))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_bad_file_is_named_and_the_others_are_done(workers: str, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a", "c", "d"):
        Image.new("RGB", (40, 30), "red").save(folder / f"{name}.png")
    (folder / "b.png").write_bytes(b"no image")
    command = (folder, "none.jpg", "--out", tmp_path / "out", "--proposals", "windows", "--workers", workers)
    result = propose(*command)
    assert result.exit_code == 1
    assert "none.jpg: expected an image, a folder of images or a glob" in result.stderr
    assert f"sppnet: {folder / 'b.png'}: expected" in result.stderr
    assert sorted(boxes_in(tmp_path / "out")) == ["a.npz", "c.npz", "d.npz"]
    assert "3 images" in result.stdout


def test_another_photo_of_the_same_name_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "cat.png")
    command = (tmp_path / "cat.png", "--out", tmp_path / "out", "--proposals", "windows")
    assert propose(*command).exit_code == 0
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)).save(tmp_path / "cat.png")
    result = propose(*command)
    assert result.exit_code == 1
    assert "that of another cat" in result.stderr


def process(photos: Path, out: Path, workers: int) -> list[str]:
    """Return a command line of a process of its own that takes seconds."""
    program = [sys.executable, str(REPOSITORY / "tools" / "propose.py"), str(photos), "--out", str(out)]
    return [*program, "--proposals", "quality", "--workers", str(workers)]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_stopped_or_killed_continues(workers: int, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    generator = np.random.default_rng(0)
    for number in range(24):
        blocks = np.kron(generator.integers(0, 256, (24, 36, 3), np.uint8), np.ones((10, 10, 1), np.uint8))
        Image.fromarray(blocks).save(photos / f"{number:02d}.png")
    out = tmp_path / "out"
    command = process(photos, out, workers)
    code, errors = stop(command, signal.SIGINT, lambda: len(boxes_in(out)) > 2)
    assert (code, errors[-1]) == (130, "interrupted")
    assert "stopped; the same command continues" in errors
    first = len(boxes_in(out))
    code, _ = stop(command, signal.SIGKILL, lambda: len(boxes_in(out)) > first + 2)
    assert code == -signal.SIGKILL
    assert first < len(boxes_in(out)) < 24
    assert wait_for(lambda: not running(str(out))), "workers end with the process that made them"
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert len(boxes_in(out)) == 24
    search = SelectiveSearch(mode="quality")
    folder = ProposalStore(out, search).folder
    for name in ("00", "13", "23"):
        found = load_proposals(folder / f"{name}.npz")
        assert found is not None
        assert torch.equal(found.boxes, search(read_image(photos / f"{name}.png")).boxes)
    assert len(json.loads((folder / "index.json").read_text())) == 24


def running(text: str) -> list[str]:
    """Return the processes whose command line or environment has a text; Linux only, none elsewhere."""
    found = []
    for path in Path("/proc").glob("[0-9]*/fd"):
        if path.parent.name == str(os.getpid()):
            continue
        try:
            command = (path.parent / "cmdline").read_bytes().decode(errors="replace")
            parent = (path.parent / "status").read_text()
        except OSError:
            continue
        if "multiprocessing" in command and "spawn_main" in command and "PPid:\t1\n" in parent:
            found.append(command)
    return found


def wait_for(condition: object, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["photos", "--proposals", "dowsing"], 1, "expected a proposer named single, fast"),
        (["photos", "--workers", "0"], 2, "Invalid value for '--workers'"),
        (["nothing.jpg"], 2, "expected at least one image, got none from nothing.jpg"),
        (["voc:photos:none"], 1, "photos/JPEGImages: expected the folder of a VOC tree"),
        (["photos", "--proposals", "json:none.json"], 1, "none.json: No such file or directory"),
        ([], 2, "Missing argument"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Image.new("RGB", (4, 3)).save("photos/a.png")
    result = propose(*arguments, "--out", "out")
    assert result.exit_code == code
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not Path("out").exists()
