"""Check and unpack archives of photographs, all or nothing, and remember which are complete.

An archive that is coming in is ARCHIVE.part. It is unpacked into a hidden folder beside its place, and what is in there
is renamed into place once all of it is; then .ARCHIVE.json is written, the stamp by which it is known to be complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from .files import write_json

_CHUNK = 2**20
_MARGIN = 0.03  # files fill whole blocks of the disk
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
Watch = Callable[[str, int, int | None], None]  # stage ("download", "check", "unpack"), bytes done, of how many


@dataclass(frozen=True, slots=True)
class Archive:
    """Hold what is known of a .tar or .zip file: its name, MD5 sum and addresses, the one to try first in front.

    size, unpacked: bytes of the file and of what is in it. They tell how much space is needed; the MD5 sum alone
    decides whether a file is the right one.
    """

    name: str
    md5: str
    size: int
    unpacked: int
    addresses: tuple[str, ...]

    def at(self, mirror: str) -> Archive:
        """Return the same archive in another place: the URL of a folder (http, https, file) or the folder itself.

        Raises ValueError if it is neither.
        """
        folder = Path(mirror)
        base = folder.resolve().as_uri() if "://" not in mirror and folder.is_dir() else mirror
        if not re.match(r"(https?://[^/]|file:///)", base):
            raise ValueError(f"{mirror}: expected a folder or an address with http://, https:// or file:///")
        return replace(self, addresses=(f"{base.rstrip('/')}/{self.name}",))

    def part(self, folder: Path) -> Path:
        """Return the path of what has come in of it."""
        return folder / f"{self.name}.part"

    def stamp(self, folder: Path) -> Path:
        """Return the path of its stamp."""
        return folder / f".{self.name}.json"

    def received(self, folder: Path) -> int:
        """Return how many bytes of it are there."""
        return max(size_of(folder / self.name), size_of(self.part(folder)))


def ignore_progress(stage: str, done: int, total: int | None) -> None:
    """Do nothing; total is None if it is not known."""


def fetch(
    archive: Archive,
    folder: Path,
    receive: Callable[[Archive, Path, Watch], None],
    keep: bool = False,
    watch: Watch = ignore_progress,
) -> bool:
    """Download an archive, check it and unpack it into `folder`; return False if that was done before.

    receive: downloads what is missing of a file. keep: leave the archive there, too. Raises ValueError for a wrong MD5
    sum (what came is removed; a file that was there before is renamed .bad), too little space on the disk, another
    process at work or what `unpack` refuses; what `receive` raises passes through.
    """
    if is_complete(archive, folder):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        check_space(folder, space_needed([archive], folder, keep))
        path, part = folder / archive.name, archive.part(folder)
        came = not path.is_file()
        if came:
            receive(archive, part, watch)
        found = md5_of(part if came else path, watch)
        if found != archive.md5:
            fate = "it was removed" if came else f"it is now {path.name}.bad"
            part.unlink() if came else path.replace(path.with_name(f"{path.name}.bad"))
            raise ValueError(f"{path}: expected the MD5 sum {archive.md5}, got {found}: {fate}, download it again")
        if came:
            part.replace(path)
        folders = unpack(path, folder, watch)
        write_json(archive.stamp(folder), {"md5": archive.md5, "folders": folders})
        if not keep:
            path.unlink()
    return True


def is_complete(archive: Archive, folder: Path) -> bool:
    """Tell whether an archive was unpacked, by its stamp and by how many files are in its folders now."""
    try:
        stamp = json.loads(archive.stamp(folder).read_text(encoding="utf-8"))
        return stamp["md5"] == archive.md5 and all(
            (folder / name / first).is_file() and (folder / name / last).is_file() and count <= _files(folder / name)
            for name, (count, first, last) in stamp["folders"].items()
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # no stamp or a damaged one, no such folder
        return False


def space_needed(archives: Sequence[Archive], folder: Path, keep: bool = False) -> int:
    """Return the free bytes that are enough for all archives that are not complete, fetched one after the other.

    keep: each stays where it is, else it is removed before the next one comes.
    """
    settled = most = 0
    for archive in archives:
        if not is_complete(archive, folder):
            there = archive.received(folder)
            missing = max(archive.size - there, 0)
            most = max(most, settled + missing + archive.unpacked)
            settled += archive.unpacked + (missing if keep else -there)
    return int(most * (1 + _MARGIN))


def check_space(folder: Path, needed: int) -> None:
    """Raise ValueError unless the disk of a folder, which need not exist yet, has so many bytes left."""
    free = free_space(folder)
    if free < needed:
        raise ValueError(f"{folder}: expected {needed / 1e9:.1f} GB of free space on its disk, got {free / 1e9:.1f} GB")


def free_space(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which need not exist yet."""
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def md5_of(path: Path, watch: Watch = ignore_progress) -> str:
    """Return the MD5 sum of a file in hexadecimal digits."""
    digest, done, total = hashlib.md5(usedforsecurity=False), 0, size_of(path)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            watch("check", done, total)
    return digest.hexdigest()


def unpack(path: Path, folder: Path, watch: Watch = ignore_progress) -> dict[str, tuple[int, str, str]]:
    """Unpack a .zip or .tar archive into `folder`, all or nothing; files of the same name are replaced.

    Return for each folder the number of its files and the names of the first and the last. Raises ValueError for an
    archive that is damaged or holds links, devices or paths that lead out of `folder`; nothing is written then.
    """
    beside = folder / f".{path.name}.unpacking"
    shutil.rmtree(beside, ignore_errors=True)  # of a call that was killed
    beside.mkdir()
    try:
        (_unpack_zip if path.suffix == ".zip" else _unpack_tar)(path, beside, watch)
        folders = {
            Path(where).relative_to(beside).as_posix(): (len(names), min(names), max(names))
            for where, _, names in os.walk(beside)
            if names
        }
        _merge(beside, folder)
    except _DAMAGE as error:
        raise ValueError(f"{path}: expected a whole archive, got a damaged one ({error})") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folders


def _unpack_tar(path: Path, folder: Path, watch: Watch) -> None:
    with tarfile.open(path) as archive:
        members = archive.getmembers()
        for member in members:
            _check_member(path, member.name, member.isfile() or member.isdir())
        # The filter also resets modes and owners; Python 3.10.11 and older know none, and there they are not set.
        options: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {"set_attrs": False}
        for index in _watched([member.size for member in members], folder, watch):
            archive.extract(members[index], folder, **options)


def _unpack_zip(path: Path, folder: Path, watch: Watch) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        for member in members:
            _check_member(path, member.filename, True)  # a link would become a file that holds its target
        for index in _watched([member.file_size for member in members], folder, watch):
            archive.extract(members[index], folder)


def _check_member(path: Path, name: str, plain: bool) -> None:
    if not plain:
        raise ValueError(f"{path}: expected files and folders only, got a link or device: {name!r:.200}")
    if any(kind(name).anchor or ".." in kind(name).parts for kind in (PurePosixPath, PureWindowsPath)):
        raise ValueError(f"{path}: expected paths inside of the folder, got {name!r:.200}")


def _watched(sizes: list[int], folder: Path, watch: Watch) -> Iterator[int]:
    """Check that there is space for members of these sizes; yield their indices and report progress after each."""
    done, total = 0, sum(sizes)
    check_space(folder, total)
    for index, size in enumerate(sizes):
        yield index
        done += size
        watch("unpack", done, total)


def _merge(source: Path, target: Path) -> None:
    """Rename what is in `source` into `target`; folders that are there already get the files besides their own."""
    for entry in source.iterdir():
        place = target / entry.name
        if place.is_dir() and entry.is_dir():
            _merge(entry, place)
        else:
            entry.replace(place)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes from downloading into a folder; raise ValueError if one does.

    The system takes the lock back from a process that is killed. Windows has none, nor have some network drives.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{folder}: expected to be alone, but another download is at work in it") from None
        yield
    finally:
        os.close(handle)


def size_of(path: Path) -> int:
    """Return the bytes of a file, 0 if it is missing."""
    return path.stat().st_size if path.is_file() else 0


def _files(folder: Path) -> int:
    with os.scandir(folder) as entries:
        return sum(entry.is_file() for entry in entries)
