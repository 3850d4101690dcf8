"""Write files whole or not at all: beside their place, then renamed, so that no reader ever finds a part of one."""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SUFFIX = ".part"


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside `path` to write to; rename it to `path` if the block succeeds, remove it if it raises.

    The folder is made if it is missing. Every call has a path of its own, so that processes and threads may write the
    same file at once: the last one to finish wins. The file gets the mode of any new file, whatever its writer gave it.
    Raises OSError if the folder cannot be made or written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_SUFFIX}")
    try:
        beside.touch(exist_ok=False)  # the mode of a new file: the umask cannot be read without being set
        mode = stat.S_IMODE(beside.stat().st_mode)
        beside.unlink()
        yield beside
        beside.chmod(mode)
        beside.replace(target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def remove_parts(path: str | os.PathLike[str]) -> None:
    """Remove what killed processes left of `path`; call it only where nobody else writes that file."""
    target = Path(path)
    for entry in target.parent.glob(f".*{_SUFFIX}"):
        if entry.name.startswith(f".{target.name}."):
            entry.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file, whole or not at all."""
    with replacing(path) as beside:
        beside.write_bytes(content)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file with the line ends of `text`, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented JSON, whole or not at all; raises ValueError for NaN and infinity, unknown to JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
