"""Check `sppnet propose`: its files, names, workers, what it says of bad ones, and that it continues if stopped."""

from __future__ import annotations

import json
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from detector.checkpoints import save_detector
from detector.cli import main
from detector.datasets import open_dataset
from detector.images import read_image
from proposals.fast import SelectiveSearch
from proposals.registry import make_proposer
from proposals.store import ProposalStore, load_proposals, save_proposals
from proposals.structures import Proposals
from tests.toy import CLASSES, SETTINGS, draw, small_model


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
def test_the_number_of_workers_changes_nothing(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Pool(ProcessPoolExecutor):
        def __init__(self, workers: int, *arguments: Any) -> None:
            started.append(workers)
            super().__init__(workers, *arguments)

    monkeypatch.setattr("detector.cli.workers.ProcessPoolExecutor", Pool)
    command = (toy / "JPEGImages", "--proposals", "single", "--out")
    for workers in ("1", "3"):
        assert propose(*command, tmp_path / workers, "--workers", workers).exit_code == 0
    assert boxes_in(tmp_path / "1") == boxes_in(tmp_path / "3")
    assert len(boxes_in(tmp_path / "1")) == 8
    for path in sorted((tmp_path / "3").rglob("*.npz"))[2:4]:
        path.unlink()
    assert propose(*command, tmp_path / "3", "--workers", "8").exit_code == 0
    assert boxes_in(tmp_path / "1") == boxes_in(tmp_path / "3")
    assert started == [3, 2], "two images are missing"


def test_annotated_photos_fill_the_cache_of_train_and_evaluate(toy: Path, tmp_path: Path) -> None:
    """Put one box in place of all: both commands must find it, and nothing else is written."""
    spec, cache = f"voc:{toy}:test", tmp_path / "cache"
    assert propose(spec, "--out", cache / "proposals", "--workers", "1").exit_code == 0
    store = ProposalStore(cache / "proposals", make_proposer("fast"))
    samples = open_dataset(spec).samples
    assert len(samples) == 2
    for sample in samples:
        found = store.load(sample.image_id)
        assert found is not None
        assert torch.equal(found.boxes, SelectiveSearch()(read_image(sample.path)).boxes)
        save_proposals(store.path(sample.image_id), Proposals(torch.tensor([[9.0, 7.0, 99.0, 88.0]])))
    before = boxes_in(cache)
    save_detector(small_model(), tmp_path / "model.safetensors")
    options = ["--cache", str(cache), "--threads", "1"]
    command = ["evaluate", "--model", str(tmp_path / "model.safetensors"), "--data", spec, *options]
    result = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert 0 < len(rows) <= 2 * len(CLASSES), "one box for each class"
    settings = [part for text in ("epochs=1", "holdout=0") for part in ("--set", text)]
    command = ["train", spec, "--config", str(SETTINGS), *settings, *options]
    assert CliRunner().invoke(main, [*command, "--out", str(tmp_path / "run")]).exit_code == 0
    assert boxes_in(cache / "proposals") == before


def test_a_cache_of_other_photos_is_refused_either_way(toy: Path, tmp_path: Path) -> None:
    other = draw(tmp_path / "other" / "toy", 8, seed=9)
    save_detector(small_model(), tmp_path / "model.safetensors")
    start = ["evaluate", "--model", str(tmp_path / "model.safetensors"), "--threads", "1", "--no-interval"]
    cache = tmp_path / "cache"
    assert propose(f"voc:{toy}:test", "--out", cache / "proposals", "--workers", "1").exit_code == 0
    result = CliRunner().invoke(main, [*start, "--data", f"voc:{other}:test", "--cache", str(cache)])
    assert result.exit_code == 1
    assert f"{cache}: expected the cache of" in result.stderr
    result = propose(f"voc:{other}:test", "--out", cache / "proposals", "--workers", "1")
    assert result.exit_code == 1
    assert "that of another toy_" in result.stderr
    assert "choose another --out" in result.stderr


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
    names = [
        "a/cat.png",
        "b/Cat.png",
        "b/two words.png",
        "b/two_words.png",
        "b/-.png",
        "b/..a.png",
        f"b/{'x' * 200}.png",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (30, 20)).save(tmp_path / name)
    command = [tmp_path / name for name in names]
    assert propose(*command, "--out", tmp_path / "out", "--proposals", "windows", "--workers", "1").exit_code == 0
    (index,) = (json.loads(path.read_text()) for path in (tmp_path / "out").rglob("index.json"))
    assert list(index) == [str(path) for path in command]
    files = list(index.values())
    assert len({file.casefold() for file in files}) == len(files)
    wanted = [r"cat-\w{8}", r"Cat-\w{8}", r"two_words-\w{8}", "two_words", "-", r"a-\w{8}", r"x{60}-\w{8}"]
    assert all(re.fullmatch(rf"{name}\.npz", file) for name, file in zip(wanted, files, strict=True)), files
    assert sorted(files) == sorted(path.name for path in (tmp_path / "out").rglob("*.npz"))


@pytest.mark.parametrize("relative", [False, True])
def test_a_later_photo_of_the_same_name_and_size_gets_boxes_of_its_own(
    relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Propose BMP files, all of 2,454 bytes, one command each, as they might be frames of films."""
    paths = [tmp_path / folder / "cat.bmp" for folder in ("a", "b")]
    for number, path in enumerate(paths):
        path.parent.mkdir()
        pixels = np.random.default_rng(number).integers(0, 256, (20, 40, 1), np.uint8).repeat(3, axis=2)
        Image.fromarray(np.where(np.arange(40)[:, None] < 9 + 20 * number, pixels, 255 - pixels)).save(path)
    assert paths[0].stat().st_size == paths[1].stat().st_size
    for path in (*paths, *paths):
        monkeypatch.chdir(path.parent)
        name = path.name if relative else path
        assert propose(name, "--out", tmp_path / "out", "--proposals", "single", "--workers", "1").exit_code == 0
    folder = ProposalStore(tmp_path / "out", SelectiveSearch(mode="single")).folder
    index = json.loads((folder / "index.json").read_text())
    found = [load_proposals(folder / index[str(path)]) for path in paths]
    assert len(boxes_in(folder)) == 2
    for path, one in zip(paths, found, strict=True):
        assert one is not None
        assert torch.equal(one.boxes, SelectiveSearch(mode="single")(read_image(path)).boxes)
    assert found[0].boxes.tolist() != found[1].boxes.tolist()


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


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["photos", "--proposals", "dowsing"], 1, "expected a proposer named single, fast"),
        (["photos", "--workers", "0"], 2, "Invalid value for '--workers'"),
        (["nothing.jpg"], 2, "expected at least one image, got none from nothing.jpg"),
        (["voc:photos:none"], 1, "photos/JPEGImages: expected the folder of a VOC tree"),
        (["photos", "--proposals", "json:none.json"], 1, "none.json: "),
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
