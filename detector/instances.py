"""Read the three lists of a COCO instances file as they are, whatever it turns out to hold."""

from __future__ import annotations

import json
import math
import reprlib
from pathlib import Path
from typing import Any, TypeGuard

LISTS = ("images", "annotations", "categories")
MAX_BYTES = 4 * 2**30
_BEFORE_JSON = b"\xef\xbb\xbf\xff\xfe\x00 \t\r\n"  # byte order marks, the zeros of UTF-16 and white space


def read_lists(path: Path) -> dict[str, list[Any]]:
    """Return `images`, `annotations` and `categories` of a file; nothing is known of what they hold.

    Raises FileNotFoundError if there is no such file and ValueError if it is no JSON, too large or has other content,
    one sentence each.
    """
    lists = ", ".join(LISTS)
    try:
        with path.open("rb") as file:
            start = file.read(4096).lstrip(_BEFORE_JSON)[:1].decode(errors="replace")
        if start != "{":  # before gigabytes are read to find that they are something else
            got = (
                f"a damaged file, or another one, that begins with {start!r}"
                if start
                else "a damaged one, without text"
            )
            raise ValueError(f"{path}: expected COCO JSON with the lists {lists}, got {got}")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ValueError(f"{path}: expected COCO JSON of at most {MAX_BYTES >> 30} GiB, got {size / 2**30:.1f} GiB")
        content = _parse(path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path}: expected a COCO annotation file, got no such file") from None
    except OSError as error:
        raise ValueError(f"{path}: expected a COCO annotation file, got {error.strerror}") from error
    if not isinstance(content, dict) or any(not isinstance(content.get(key), list) for key in LISTS):
        got = ", ".join(sorted(content)) or "nothing" if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path}: expected COCO JSON with the lists {lists}, got {got:.120}")
    return {key: content[key] for key in LISTS}


def _parse(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError, MemoryError) as error:
        reason = str(error) or "it does not fit into memory"
        raise ValueError(f"{path}: expected COCO JSON, got a damaged or truncated file ({reason:.120})") from error


def identity(value: Any) -> int | str | None:
    """Return an id as an integer or a text, None if it is neither: 5.0 is 5, as some programs write it."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def is_number(value: Any) -> TypeGuard[float]:
    """Tell whether a value is a number that a float can hold."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of more than 308 digits
        return False


def shown(value: Any) -> str:
    """Return a value as Python writes it, cut to some 60 characters and six levels, however large or deep it is."""
    return reprlib.repr(value)
