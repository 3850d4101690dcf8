"""Hold the packages to their layers, by reading every import; see docs/architecture.md."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sources import PACKAGES, REPOSITORY, imports, module_level, module_name, over_files, read, sources

# A module may import from the rows before its own only. A new module gets its place here, in the review that adds it.
ROWS = (
    {
        "structures",
        "config",
        "classes",
        "networks",
        "geometry",
        "folding",
        "files",
        "journal",
        "allocation",
        "threads",
        "findings",
        "instances",
        "example_store",
        "optimizers",
        "presets",
    },
    {
        "classifier_config",
        "pyramid",
        "dual_descent",
        "duplicates",
        "backbones",
        "pooling",
        "images",
        "boxes",
        "fusion",
        "timing",
        "annotations",
        "warping",
        "machine",
    },
    {
        "views",
        "label_files",
        "features",
        "scales",
        "heads",
        "svm",
        "regression",
        "sampling",
        "selection",
        "trees",
        "runtimes",
        "last_layer",
    },
    {"engines", "datasets", "labels", "feature_norm"},
    {"mining", "regions", "classification", "evaluation", "preparation", "inspection", "result_rows"},
    {"sppnet", "rcnn", "ensemble", "voc_results", "refitting"},
    {"machines", "reduced", "transfer"},
    {
        "checkpoints",
        "batches",
        "validation",
        "export",
        "drawing",
        "explanation",
        "plots",
        "detection_files",
        "archives",
        "pages",
        "evaluation_plots",
        "failures",
    },
    {"learning", "classifier_files", "example_files"},
    {
        "training",
        "machine_training",
        "image_training",
        "classifier_training",
        "crops",
        "racing",
        "report",
        "evaluation_report",
        "explanation_drawing",
    },
    {"teaching", "class_refitting"},
    {"pretraining"},
    {"benchmark"},
    {"sweep"},
    {"cli"},
)
LEVEL = {name: level for level, row in enumerate(ROWS) for name in row}
# Methods of value types that convert or draw themselves may reach up, inside the method: (importer, imported).
UPWARD = {("structures", "export"), ("structures", "drawing")}
# Evaluation measures anybody's boxes: it knows what detections are, not where they or the truth come from.
ONLY = {"evaluation": {"structures", "boxes"}}


def unit(module: str, name: str | None) -> str:
    """Return what of `detector` an import is about: "pooling", "cli", ...; "" is the package itself."""
    parts = module.split(".")
    if len(parts) > 1:
        return parts[1]
    return name if name in LEVEL else ""


def import_faults(name: str, is_package: bool, tree: ast.Module) -> list[str]:
    """List the imports of a module that go against the layers."""
    package = name if is_package else name.rpartition(".")[0]
    top = module_level(tree)
    faults = []
    for module, imported, node in imports(tree, package):
        root = module.split(".")[0]
        where = f"line {getattr(node, 'lineno', 0)}: {name} imports {module} ({imported})"
        if root in ("tests", "tools"):
            faults.append(f"{where}: programs and tests are not part of the package")
        elif root == "detector" and name.startswith("proposals"):
            faults.append(f"{where}: proposals know nothing of the detector")
        elif root == "proposals" and name.startswith("detector") and not name.startswith("detector.cli"):
            if module != "proposals.structures" and (module, imported) != ("proposals", "structures"):
                faults.append(f"{where}: only the command knows other proposers than the protocol")
        elif root == "detector":
            faults += [f"{where}: {why}" for why in layer_faults(name, unit(module, imported), node in top)]
    return faults


def layer_faults(importer: str, imported: str, at_top: bool) -> list[str]:
    """Say why a module of `detector` may not import another, if so."""
    own = importer.split(".")[1] if "." in importer else ""
    if own in (imported, "cli"):
        return []
    if own == "":  # the package itself: it re-exports
        return ["the command is not part of the API"] if imported == "cli" else []
    if imported == "":
        return ["import the module that defines it, not the package"]
    if (own, imported) in UPWARD:
        return ["at the top of the file; the exception is for the inside of a method"] if at_top else []
    missing = {own, imported} - LEVEL.keys()
    if missing:
        return [f"{', '.join(sorted(missing))} has no row in {Path(__file__).name}"]
    if imported not in ONLY.get(own, LEVEL):
        return [f"{own} knows {', '.join(sorted(ONLY[own]))} alone"]
    return [] if LEVEL[imported] < LEVEL[own] else [f"{imported} is not below {own}"]


@over_files(*PACKAGES)
def test_imports_point_downward(path: Path) -> None:
    assert import_faults(module_name(path), path.name == "__init__.py", read(path)) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("detector.boxes", "from .sppnet import SPPNet"),
        ("detector.boxes", "from . import sppnet"),
        ("detector.boxes", "def f():\n    import detector.training"),
        ("detector.boxes", "import importlib\nimportlib.import_module('detector.heads')"),
        ("detector.boxes", "from .pooling import spatial_pyramid_pool"),
        ("detector.boxes", "from detector import Detections"),
        ("detector.boxes", "from .newcomer import x"),
        ("detector.evaluation.voc", "from ..sppnet import SPPNet"),
        ("detector.evaluation.voc", "from .. import training"),
        ("detector.evaluation.coco", "from ..datasets import Dataset"),
        ("detector.structures", "from .drawing import draw_detections"),
        ("detector.training", "from proposals.fast import FastSelectiveSearch"),
        ("detector.training", "from proposals import fast"),
        ("detector.training", "from tests.conftest import SEED"),
        ("proposals.fast", "def f():\n    from detector.structures import Detections"),
    ],
)
def test_a_wrong_import_is_found(name: str, source: str) -> None:
    assert len(import_faults(name, False, ast.parse(source))) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("detector.sppnet", "from .boxes import decode\nfrom . import pooling"),
        ("detector.evaluation.voc", "from ..structures import Detections\nfrom .errors import x"),
        ("detector.structures", "def f():\n    from .drawing import draw_detections"),
        ("detector.training", "from proposals.structures import Proposer"),
        ("detector.cli.detect", "from proposals.fast import x\nfrom ..sppnet import SPPNet"),
        ("proposals.store", "from .structures import Proposals\nimport numpy"),
    ],
)
def test_a_right_import_is_let_through(name: str, source: str) -> None:
    assert import_faults(name, False, ast.parse(source)) == []


IMPORT_ALL = """
import importlib, json, logging, random, sys, threading
import numpy, torch
def state():
    return {
        "torch": torch.get_rng_state().tolist(), "numpy": numpy.random.get_state()[1].tolist(),
        "random": repr(random.getstate()), "dtype": str(torch.get_default_dtype()), "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(), "handlers": len(logging.getLogger().handlers),
    }
before = state()
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
after = state()
changed = [key for key in before if before[key] != after[key]]
sys.stderr.write(json.dumps({"changed": changed, "running": threading.active_count()}))
"""


@pytest.mark.slow
def test_importing_changes_nothing(tmp_path: Path) -> None:
    """Import every module in a fresh process: no file, no output, no global state touched, no thread started."""
    names = [module_name(path) for path in sources(*PACKAGES) if path.stem != "__main__"]
    folders = {key: tmp_path / key for key in ("work", "home", "numba", "others")}
    for folder in folders.values():
        folder.mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(folders["home"]),
        "NUMBA_CACHE_DIR": str(folders["numba"]),
        "MPLCONFIGDIR": str(folders["others"]),
    }
    command = [sys.executable, "-c", IMPORT_ALL, json.dumps(names)]
    done = subprocess.run(command, cwd=folders["work"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert json.loads(done.stderr.splitlines()[-1]) == {"changed": [], "running": 1}
    assert [path for key in ("work", "home", "numba") for path in folders[key].rglob("*") if path.is_file()] == []
