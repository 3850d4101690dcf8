"""Download the photographs and annotations of PASCAL VOC or COCO, and unpack them as `sppnet` reads them.

    python tools/download.py voc2007 --to data/VOC
    python tools/download.py coco2017 --to data/coco --only val annotations

A download that was stopped, by whatever, is continued by the same command. What is complete is not downloaded again.
"""

from __future__ import annotations

import argparse
import logging
import re
import shlex
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from detector.archives import (
    Archive,
    Watch,
    check_space,
    fetch,
    free_space,
    is_complete,
    size_of,
    space_needed,
)

_log = logging.getLogger("download")
CHUNK, LONGEST_PAUSE = 2**16, 60.0  # bytes, of which the last may be lost with a connection; seconds
AGAIN = {408, 425, 429}  # HTTP answers below 500 that are worth another try


class Dataset(NamedTuple):
    """Hold the archives of a data set by the part each has, and commands with the parts that they need."""

    parts: Mapping[str, Archive]
    commands: tuple[tuple[str, str], ...]  # parts, and the command with {0} for the folder


class Patience(NamedTuple):
    """Hold how often in a row to try in vain, and the seconds before the second try (then doubled) and to wait for."""

    tries: int = 6
    pause: float = 1.0
    timeout: float = 30.0


def _voc(year: int, name: str, md5: str, size: int) -> Archive:
    """Name an archive of VOC. The sums are those of torchvision, `torchvision/datasets/voc.py`."""
    hosts = ("https://thor.robots.ox.ac.uk/pascal/VOC/voc", "http://host.robots.ox.ac.uk/pascal/VOC/voc")
    addresses = (*(f"{host}{year}/{name}" for host in hosts), f"https://data.pjreddie.com/files/{name}")
    return Archive(name, md5, size, size, addresses)


def _coco(path: str, md5: str, size: int, unpacked: int) -> Archive:
    """Name an archive of COCO. It publishes no sums; these are those that PaddleDetection checks.

    https://github.com/PaddlePaddle/PaddleDetection, `ppdet/utils/download.py`; many others name the same ones.
    """
    hosts = ("http://images.cocodataset.org/", "https://s3.amazonaws.com/images.cocodataset.org/")
    return Archive(path.split("/")[-1], md5, size, unpacked, tuple(host + path for host in hosts))


_ANNOTATIONS = "annotations/annotations_trainval2017.zip"
_COCO_DATA = "coco:{{0}}/annotations/instances_{0}2017.json:{{0}}/{0}2017"
DATASETS = {
    "voc2007": Dataset(
        {
            "trainval": _voc(2007, "VOCtrainval_06-Nov-2007.tar", "c52e279531787c972589f7e41ab4ae64", 460_032_000),
            "test": _voc(2007, "VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f", 451_020_800),
        },
        (
            ("trainval", "sppnet train voc:{0}/VOCdevkit/VOC2007:trainval --out runs/voc2007"),
            ("test", "sppnet evaluate --data voc:{0}/VOCdevkit/VOC2007:test"),
        ),
    ),
    "voc2012": Dataset(
        {"trainval": _voc(2012, "VOCtrainval_11-May-2012.tar", "6cd6e144f989b92b3379bac3b3de84fd", 1_999_639_040)},
        (
            ("trainval", "sppnet train voc:{0}/VOCdevkit/VOC2012:train --out runs/voc2012"),
            ("trainval", "sppnet evaluate --data voc:{0}/VOCdevkit/VOC2012:val"),
        ),
    ),
    "coco2017": Dataset(
        {  # photographs hardly shrink in a .zip; the annotations are JSON, which does
            "train": _coco("zips/train2017.zip", "cced6f7f71b7629ddf16f17bbcfab6b2", 19_336_861_798, 19_500_000_000),
            "val": _coco("zips/val2017.zip", "442b8da7639aecaf257c1dceb8ba8c80", 815_585_330, 830_000_000),
            "annotations": _coco(_ANNOTATIONS, "f4bbac642086de4f52a3fdda2de5fa2c", 252_907_541, 900_000_000),
        },
        (
            ("train annotations", f"sppnet train {_COCO_DATA.format('train')} --out runs/coco2017"),
            ("val annotations", f"sppnet evaluate --metric coco --data {_COCO_DATA.format('val')}"),
        ),
    ),
}


class Broken(Exception):  # noqa: N818
    """Say that a download stopped, and may go on."""


class Refused(Exception):  # noqa: N818
    """Say that an address does not have the file."""


def receive(archive: Archive, part: Path, watch: Watch, patience: Patience) -> None:
    """Download to `part` from the addresses in turn, staying with one that sends something.

    Raises ConnectionError if no address has the file or all tries were in vain; what came is kept.
    """
    addresses, failures, longest = list(archive.addresses), 0, size_of(part)
    while True:
        for address in tuple(addresses):
            try:
                resume(address, part, watch, patience.timeout)
                return
            except (Broken, Refused) as error:
                told = f"{address}: {error}"
                _log.warning("%s", told)
                if isinstance(error, Refused):
                    addresses.remove(address)
            # A server that cannot continue begins again each time: only what was never there before is progress.
            if size_of(part) > longest:
                longest, failures = size_of(part), 0
                addresses.sort(key=address.__ne__)
                break
        failures += 1
        if not addresses or failures >= patience.tries:
            kept = f"; {part} is kept, the same command continues it" if size_of(part) else ""
            raise ConnectionError(f"{archive.name} could not be downloaded, {told}{kept}")
        time.sleep(min(patience.pause * 2 ** (failures - 1), LONGEST_PAUSE))


def resume(address: str, part: Path, watch: Watch, timeout: float) -> None:
    """Download what `part` lacks, or all of it from a server that sends no ranges (RFC 9110, section 14)."""
    start = size_of(part)
    ranges = {"Range": f"bytes={start}-"} if start else {}
    try:
        request = urllib.request.Request(address, headers={"User-Agent": "sppnet", **ranges})
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # nothing comes behind `part`: it is whole, or of another file
            _drop_longer(part, error.headers.get("Content-Range", ""))
            return
        kind = Broken if error.code >= 500 or error.code in AGAIN else Refused
        raise kind(f"HTTP {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        kind = Refused if address.startswith("file:") else Broken
        raise kind(f"{getattr(error, 'reason', error)}") from error
    with response:
        done, total = _extent(response, start)
        with part.open("ab" if done else "wb") as file:
            watch("download", done, total)
            for chunk in _chunks(response):
                file.write(chunk)
                done += len(chunk)
                watch("download", done, total)
    if total is not None and done != total:
        raise Broken(f"the connection was dropped after {done} of {total} bytes")


def _drop_longer(part: Path, content_range: str) -> None:
    match = re.fullmatch(r"bytes \*/(\d+)", content_range.strip())
    if match and int(match[1]) != size_of(part):
        part.unlink()
        raise Broken(f"the file there has {match[1]} bytes, {part.name} is longer and was removed")


def _extent(response: Any, start: int) -> tuple[int, int | None]:
    """Return the first byte that comes, `start` or 0, and the bytes of the whole file if the response says so."""
    headers = response.headers
    if headers.get_content_type() == "text/html":  # of a network that wants its users to log in, say
        raise Refused("expected an archive, got a web page")
    length = headers.get("Content-Length")
    if response.status != 206:  # None for file://
        return 0, int(length) if length else None
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("Content-Range", "").strip())
    if match is None or int(match[1]) != start:
        raise Refused(f"expected the bytes from {start}, got {headers.get('Content-Range')}")
    return start, int(match[3]) if match[3] != "*" else int(match[2]) + 1


def _chunks(response: Any) -> Iterator[bytes]:
    try:
        while chunk := response.read(CHUNK):
            yield chunk
    except (OSError, HTTPException) as error:
        raise Broken(f"the connection was dropped, {error or type(error).__name__}") from error


class Progress:
    """Show a bar for each stage of each archive, if the error output is a terminal."""

    def __init__(self) -> None:
        self.name, self.key, self.bar = "", ("", ""), tqdm(disable=True)

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Move the bar; a new stage gets a new one."""
        if self.key != (self.name, stage):
            self.bar.close()
            self.key, title = (self.name, stage), f"{stage} {self.name}"
            self.bar = tqdm(
                None, title, total, unit="B", unit_scale=True, initial=done, dynamic_ncols=True, disable=None
            )
        self.bar.total = total
        self.bar.update(done - self.bar.n)


class Notes(logging.Handler):
    """Print what is logged above the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        tqdm.write(f"download: {record.getMessage()}", file=sys.stderr)


def plan(archives: Sequence[Archive], folder: Path, keep: bool) -> str:
    """Return what would be downloaded from where, and the space it needs."""
    lines = []
    for archive in archives:
        there = f"{archive.received(folder) / 1e6:.1f} MB are there"
        state = "complete" if is_complete(archive, folder) else there
        lines.append(f"{archive.name}: {archive.size / 1e6:.1f} MB, {state}, MD5 {archive.md5}")
        lines += [f"  {address}" for address in archive.addresses]
    needed, free = space_needed(archives, folder, keep), free_space(folder)
    return "\n".join([*lines, f"needs {needed / 1e9:.2f} GB of space in {folder}, {free / 1e9:.2f} GB are free"])


def read_arguments(arguments: Sequence[str], datasets: Mapping[str, Dataset]) -> argparse.Namespace:
    """Read the command line; `archives` are those that are wanted."""
    parser = argparse.ArgumentParser(prog="download.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("dataset", choices=datasets)
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="the folder to unpack into")
    names = "; ".join(f"{name}: {', '.join(dataset.parts)}" for name, dataset in datasets.items())
    parser.add_argument("--only", nargs="+", metavar="PART", help=f"these parts, not all ({names})")
    parser.add_argument("--keep", action="store_true", help="keep the archives, too")
    parser.add_argument("--from", dest="mirror", metavar="URL", help="a folder with the archives, to take them from")
    parser.add_argument("--dry-run", action="store_true", help="print addresses, sizes and the space needed")
    read = parser.parse_args(arguments)
    parts = datasets[read.dataset].parts
    for name in read.only or ():
        if name not in parts:
            parser.error(f"--only: expected {' or '.join(parts)} of {read.dataset}, got {name}")
    archives = [archive for name, archive in parts.items() if name in (read.only or parts)]
    try:
        read.archives = [archive.at(read.mirror) for archive in archives] if read.mirror else archives
    except ValueError as error:
        parser.error(f"--from: {error}")
    return read


def main(arguments: Sequence[str], datasets: Mapping[str, Dataset], patience: Patience) -> int:
    """Read the command line and download; return the exit code, 0, 1 for a failure or 130 for Ctrl-C."""
    read = read_arguments(arguments, datasets)
    archives, folder, dataset, progress = read.archives, read.to, datasets[read.dataset], Progress()
    if read.dry_run:
        print(plan(archives, folder, read.keep))
        return 0
    _log.handlers = [Notes()]
    try:
        check_space(folder, space_needed(archives, folder, read.keep))
        for archive in archives:
            progress.name = archive.name
            if not fetch(archive, folder, partial(receive, patience=patience), read.keep, progress):
                print(f"{archive.name} is complete already")
    except KeyboardInterrupt:
        progress.bar.close()
        print(f"download: interrupted; what came is kept in {folder}, the same command continues", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        progress.bar.close()
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.strerror else error
        print(f"download: error: {text}", file=sys.stderr)
        return 1
    progress.bar.close()
    for parts, command in dataset.commands:
        if all(is_complete(dataset.parts[name], folder) for name in parts.split()):
            print(command.format(shlex.quote(str(folder))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], DATASETS, Patience()))
