"""Remember what long work has finished, one line per item, so that it continues where it was killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Journal:
    """Keep finished items in a file of JSON lines; a line that was cut off by a kill is forgotten.

    path: the file; made with its folder on the first `add`. key: stands for everything that shapes the items; a file
    with another key is started anew.
    """

    def __init__(self, path: Path, key: str):
        self.path, self.key = path, key
        self.items: dict[str, Any] = {}
        whole = self._read()
        if whole is not None and whole < path.stat().st_size:
            with path.open("r+b") as file:
                file.truncate(whole)
        self._new = whole is None

    def add(self, name: str, value: Any) -> None:
        """Write down a finished item; `value` is JSON-serialisable."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("wb" if self._new else "ab") as file:
            if self._new:
                file.write(json.dumps({"key": self.key}).encode() + b"\n")
            file.write(json.dumps([name, value]).encode() + b"\n")
        self._new = False
        self.items[name] = value

    def remove(self) -> None:
        """Delete the file: the work is done and its result is written elsewhere."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> int | None:
        """Read all whole lines; return how many bytes they are, None for no file or one of another key."""
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return None
        size = 0
        for number, line in enumerate(lines):
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            if number == 0:
                if row != {"key": self.key}:
                    return None
            else:
                self.items[row[0]] = row[1]
            size += len(line)
        return size or None
