"""Test downloads against a real server on this machine: whole, dropped, killed, refused, wrong and hostile ones."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.datasets.voc import DATASET_YEAR_DICT

from detector.archives import Archive, alone, fetch, is_complete, space_needed, unpack
from detector.datasets import open_datasets
from tests.test_datasets import REPOSITORY, coco_tree, load_tool
from tests.toy import draw, stop

Capture = pytest.CaptureFixture[str]
tool = load_tool("download")
PROGRAM = str(REPOSITORY / "tools" / "download.py")
PATIENCE = tool.Patience(tries=3, pause=0.01, timeout=2.0)
SENT = 200_000  # bytes before a connection is dropped
NOISE = np.random.default_rng(4).bytes(500_000)
TRAIN, TEST, PHOTOS = "VOCtrain.tar", "VOCtest.tar", "photos.zip"
RUN = """import runpy, sys
globals().update(runpy.run_path(sys.argv[1]))
sys.exit(main(sys.argv[3:], {"x": Dataset({"y": eval(sys.argv[2])}, ())}, Patience(3, 0.01, 60.0)))"""


class Handler(BaseHTTPRequestHandler):
    """Send files as the next entry of the server's script says; "" is as a good server does."""

    def do_GET(self) -> None:
        server: Any = self.server
        asked = self.headers.get("Range", "")
        server.asked.append((self.path, asked))
        act, name = server.script.pop(0) if server.script else "", self.path.rpartition("/")[2]
        body = server.files.get(name, b"")
        start = int(asked[len("bytes=") : -1]) if asked and "ignore" not in act else 0
        code = int(act) if act.isdigit() else 206 if 0 < start < len(body) else 416 if start else 200
        place = f"bytes {start + ('shift' in act)}-{len(body) - 1}" if code == 206 else "bytes *"
        self.send_response(code if body else 404)
        self.send_header("Content-Length", str(len(body) - start if code < 300 else 0))
        self.send_header("Content-Type", "text/html" if "page" in act else "application/x-tar")
        self.send_header("Content-Range", f"{place}/{len(body)}")
        self.end_headers()
        end = start if code >= 300 else start + SENT if "drop" in act or "hang" in act else len(body)
        self.wfile.write(body[start:end])
        if "hang" in act:
            server.release.wait(60)

    def log_message(self, format: str, *args: Any) -> None: ...


class Server(ThreadingHTTPServer):
    """Serve `files` on a free port; `asked` are the paths and ranges that were asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.script, self.asked = list[str](), list[tuple[str, str]]()
        self.release, self.url = threading.Event(), f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None: ...  # of a client that was killed

    def archive(self, name: str, content: bytes, *folders: str) -> Archive:
        self.files[name] = content
        addresses = tuple(f"{self.url}/{folder}/{name}" for folder in folders or ("a",))
        return Archive(name, hashlib.md5(content).hexdigest(), len(content), len(content), addresses)

    def noise(self, *folders: str) -> Archive:
        return self.archive(TEST, tar_of(("data/noise.bin", NOISE)), *folders)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.release.set()
        running.shutdown()


def tar_of(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size, entry.type, entry.linkname = len(content), kind, "../out.txt"
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def get(folder: Path, *archives: Archive, options: tuple[str, ...] = ()) -> int:
    """Run the program on archives of our own."""
    parts = {f"part{number}": archive for number, archive in enumerate(archives)}
    dataset = tool.Dataset(parts, (("part0", "sppnet evaluate --data voc:{0}/VOCdevkit/VOC2007:test"),))
    return int(tool.main(["voc2007", "--to", str(folder), *options], {"voc2007": dataset}, PATIENCE))


def failure(capsys: Capture) -> str:
    return "".join(line for line in capsys.readouterr().err.splitlines() if line.startswith("download: error: "))


def test_a_voc_tree_is_downloaded_and_opened(server: Server, tmp_path: Path, capsys: Capture) -> None:
    toy, folder, inside = draw(tmp_path / "toy", 8), tmp_path / "a folder", Path("VOCdevkit/VOC2007")
    archives = []
    for split, name in (("test", TEST), ("train", TRAIN)):  # with folders in common, as those of VOC 2007
        stems = [split, *(toy / f"ImageSets/Main/{split}.txt").read_text().split()]
        paths = [path for path in toy.rglob("*.*") if path.stem in stems]
        members = [((inside / path.relative_to(toy)).as_posix(), path.read_bytes()) for path in paths]
        archives.append(server.archive(name, tar_of(*members)))
    assert get(folder, *archives) == 0
    assert capsys.readouterr().out == f"sppnet evaluate --data voc:'{folder}'/VOCdevkit/VOC2007:test\n"
    assert sorted(path.name for path in folder.glob("*.*")) == [f".{TEST}.json", f".{TRAIN}.json"]
    for split, count in (("train", 6), ("test", 2)):
        drawn, found = (open_datasets([f"voc:{root}:{split}"]) for root in (toy, folder / inside))
        assert len(found) == count
        assert [s.truth.boxes.tolist() for s in found] == [s.truth.boxes.tolist() for s in drawn]
        assert [s.path.read_bytes() for s in found] == [s.path.read_bytes() for s in drawn]
    assert (get(folder, *archives), len(server.asked)) == (0, 2)
    assert capsys.readouterr().out.splitlines()[:2] == [f"{TEST} is complete already", f"{TRAIN} is complete already"]


def test_a_coco_zip_is_downloaded_and_opened(server: Server, tmp_path: Path) -> None:
    drawn, folder = tmp_path / "drawn", tmp_path / "coco"
    spec = coco_tree(drawn, [{"id": 1, "image_id": 5, "category_id": 7, "bbox": [1, 2, 30, 20]}])
    content = Path(shutil.make_archive(str(tmp_path / "drawn"), "zip", drawn)).read_bytes()
    assert get(folder, server.archive(PHOTOS, content), options=("--keep",)) == 0
    found = open_datasets([spec.replace(str(drawn), str(folder))])
    assert {sample.source_id: sample.truth.boxes.tolist() for sample in found} == {5: [[1, 2, 31, 22]], 3: []}
    assert (folder / PHOTOS).read_bytes() == content


# What happens to the second request, and where a third one starts; what hangs loses the chunk that it is in.
AGAIN = {"": [], "ignore": [], "drop": [2 * SENT], "503": [SENT], "hang": [SENT + 3 * tool.CHUNK]}


@pytest.mark.parametrize("again", AGAIN)
def test_a_dropped_connection_is_continued(server: Server, tmp_path: Path, again: str) -> None:
    server.script = ["drop", again]
    assert get(tmp_path, server.noise()) == 0
    assert (tmp_path / "data/noise.bin").read_bytes() == NOISE
    assert [place for _, place in server.asked] == ["", *(f"bytes={start}-" for start in [SENT, *AGAIN[again]])]


def test_what_never_grows_is_given_up_and_kept(server: Server, tmp_path: Path, capsys: Capture) -> None:
    archive = server.noise()
    server.script = ["drop ignore"] * 9
    # the first try sent something new, and counts as the first of those in vain
    assert (get(tmp_path, archive), len(server.asked)) == (1, PATIENCE.tries)
    assert f"dropped after {SENT} of {archive.size} bytes; {tmp_path / TEST}.part is kept" in failure(capsys)


@pytest.mark.parametrize(("act", "asked"), [("404", 1), ("403", 1), ("page", 1), ("500", 3), ("429", 3)])
def test_an_address_without_the_file(server: Server, tmp_path: Path, capsys: Capture, act: str, asked: int) -> None:
    server.script = [act] * 9
    assert get(tmp_path, server.noise()) == 1
    assert failure(capsys).startswith(f"download: error: {TEST} could not be downloaded, {server.url}/a/{TEST}: ")
    assert (len(server.asked), list(tmp_path.iterdir())) == (asked, [])
    server.asked, server.script = [], [act]
    assert get(tmp_path, server.noise("a", "b")) == 0
    assert [path for path, _ in server.asked] == [f"/a/{TEST}", f"/b/{TEST}"]


def test_parts_that_do_not_fit_and_a_dead_server(server: Server, tmp_path: Path, capsys: Capture) -> None:
    server.script = ["drop", "shift"]
    assert get(tmp_path, server.noise("a", "b")) == 0
    assert server.asked[1:] == [(f"/a/{TEST}", f"bytes={SENT}-"), (f"/b/{TEST}", f"bytes={SENT}-")]
    archive, server.asked = server.noise(), []
    for more in (b"", b"more"):
        archive.stamp(tmp_path).unlink()
        archive.part(tmp_path).write_bytes(server.files[TEST] + more)
        assert get(tmp_path, archive) == 0
    assert [place for _, place in server.asked] == [f"bytes={archive.size}-", f"bytes={archive.size + 4}-", ""]
    assert get(tmp_path, Archive(TRAIN, "0" * 32, 9, 9, ("http://127.0.0.1:1/x",))) == 1
    assert "Connection refused" in failure(capsys)


def test_a_wrong_sum_is_told_and_the_file_put_aside(server: Server, tmp_path: Path, capsys: Capture) -> None:
    archive = server.noise()
    right, server.files[TEST] = server.files[TEST], b"wrong"
    assert get(tmp_path, archive) == 1
    wrong = "2bda2998d9b0ee197da142a0447f6725"  # printf wrong | md5sum
    assert f"{TEST}: expected the MD5 sum {archive.md5}, got {wrong}: it was removed" in failure(capsys)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / TEST).write_bytes(b"mine")
    assert get(tmp_path, archive) == 1
    assert f"it is now {TEST}.bad" in failure(capsys)
    assert (tmp_path / f"{TEST}.bad").read_bytes() == b"mine"
    (tmp_path / TEST).write_bytes(right)
    assert (get(tmp_path, archive), len(server.asked)) == (0, 1)


def test_the_program_refuses_what_is_not_the_official_archive(server: Server, tmp_path: Path) -> None:
    sent = server.archive("VOCtest_06-Nov-2007.tar", b"something else")
    told = {
        f"--only test --from {server.url}/": (1, f"b6e924de25625d8de591ea690078ad9f, got {sent.md5}: it was removed"),
        "--only val": (2, "--only: expected trainval or test of voc2007, got val\n"),
        "--from no/where": (2, "--from: no/where: expected a folder or an address with http://"),
    }
    for options, (code, text) in told.items():
        command = [sys.executable, PROGRAM, "voc2007", "--to", str(tmp_path), *options.split()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert text in done.stderr
        assert (done.returncode, "Traceback" in done.stderr) == (code, False)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_stopped_process_is_continued(server: Server, tmp_path: Path, sent: int, code: int) -> None:
    archive, part = server.noise(), tmp_path / f"{TEST}.part"
    server.script = ["hang"]
    command = [sys.executable, "-c", RUN, PROGRAM, repr(archive), "x", "--to", str(tmp_path)]
    returned, errors = stop(command, sent, lambda: part.is_file() and part.stat().st_size > 100_000)
    assert (returned, len(errors)) == (code, int(code > 0))
    assert all("interrupted" in line and "the same command continues" in line for line in errors)
    there = part.stat().st_size
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    assert (server.asked[-1][1], is_complete(archive, tmp_path)) == (f"bytes={there}-", True)


HOSTILE = {
    "'../out.txt'": tar_of(("fine.txt", b"1"), ("../out.txt", b"2")),
    "'/out.txt'": tar_of(("/out.txt", b"2")),
    "'..\\\\out.txt'": tar_of(("..\\out.txt", b"2")),
    "a link or device: 'link'": tar_of(("link", b""), kind=tarfile.SYMTYPE),
    "a damaged one": tar_of(("fine.txt", b"1" * 5000))[:3000],
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # newer Python wants the filter that older ones lack
@pytest.mark.parametrize("with_filter", [True, False], ids=["filter", "python3.10"])
def test_hostile_and_damaged_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_filter: bool) -> None:
    if not with_filter:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    folder = tmp_path / "to"
    folder.mkdir()
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("../../out.txt", b"2")
    for told, content in {**HOSTILE, "'../../out.txt'": (tmp_path / "x.zip").read_bytes()}.items():
        path = folder / ("x.zip" if content.startswith(b"PK") else "x.tar")
        path.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(told)):
            unpack(path, folder)
        assert sorted(tmp_path.rglob("*")) == [folder, path, tmp_path / "x.zip"]
        path.unlink()
    (folder / "x.tar").write_bytes(tar_of(("a/b.txt", b"1"), ("a/c.txt", b"2")))
    assert unpack(folder / "x.tar", folder) == {"a": (2, "b.txt", "c.txt")}
    assert (folder / "a/c.txt").read_bytes() == b"2"


def test_the_stamp_is_believed_only_with_its_files(server: Server, tmp_path: Path) -> None:
    archive = server.noise()
    with alone(tmp_path), pytest.raises(ValueError, match="another download is at work in it"):
        fetch(archive, tmp_path, lambda *_: None)
    (tmp_path / f".{TEST}.unpacking" / "junk").mkdir(parents=True)  # of a process that was killed
    assert get(tmp_path, archive) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".{TEST}.json", "data"]
    for damage in (tmp_path / "data/noise.bin").unlink, lambda: archive.stamp(tmp_path).write_text("[1]"):
        damage()
        assert not is_complete(archive, tmp_path)
        assert get(tmp_path, archive) == 0
        assert is_complete(archive, tmp_path)


def test_space_is_looked_for_first(server: Server, tmp_path: Path, capsys: Capture) -> None:
    huge = Archive(TEST, "0" * 32, 10**18, 10**18, (f"{server.url}/a/{TEST}",))
    assert get(tmp_path / "x", huge) == 1
    assert re.search(r"expected 20600000\d\d.\d GB of free space on its disk, got \d+.\d GB", failure(capsys))
    assert get(tmp_path / "x", huge, options=("--dry-run",)) == 0
    assert f"  {server.url}/a/{TEST}\nneeds 2060000000.00 GB" in capsys.readouterr().out
    assert (server.asked, list(tmp_path.iterdir())) == ([], [])
    one, two = Archive("one.tar", "", 100, 300, ()), Archive("two.zip", "", 1000, 2000, ())
    assert [space_needed([one, two], tmp_path, keep) for keep in (False, True)] == [int(3300 * 1.03), int(3400 * 1.03)]


def test_mirrors_may_be_folders(server: Server, tmp_path: Path, capsys: Capture) -> None:
    archive, mirror = server.noise(), tmp_path / "a mirror"
    mirror.mkdir()
    assert get(tmp_path / "x", archive, options=("--from", str(mirror))) == 1
    assert "No such file" in failure(capsys)
    (mirror / TEST).write_bytes(server.files[TEST])
    assert get(tmp_path / "x", archive, options=("--from", mirror.as_uri())) == 0


def test_the_sums_of_voc_are_those_of_torchvision() -> None:
    ours = {(a.name, a.md5) for name in ("voc2007", "voc2012") for a in tool.DATASETS[name].parts.values()}
    known = [DATASET_YEAR_DICT[year] for year in ("2007", "2007-test", "2012")]
    assert ours == {(entry["filename"], entry["md5"]) for entry in known}
