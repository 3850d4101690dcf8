"""Refit one class of a detector, from a source tree: `python tools/refit.py MODEL ...` is `sppnet refit MODEL ...`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from detector.cli import main

if __name__ == "__main__":
    main(["refit", *sys.argv[1:]], prog_name="sppnet")
