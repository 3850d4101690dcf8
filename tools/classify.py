"""Say what photos show, from a source tree: `python tools/classify.py PATH...` is `sppnet classify`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from detector.cli import main

if __name__ == "__main__":
    main(["classify", *sys.argv[1:]], prog_name="sppnet")
