"""Print a race in the layout of table 10 of the paper (He et al. 2015, arXiv 1406.4729v4), the paper's beside ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

# mAP in percent with fine-tuned fc7 and box regression; seconds without proposals; how many times as fast as R-CNN, and
# what the operations of the layers before pooling allow.
PAPER: dict[str, dict[str, str]] = {
    "sppnet": {"mAP": "58.0", "conv": "0.053", "fc": "0.089", "without": "0.142", "conv_fc": "102x", "limit": "163x"},
    "sppnet-5scale": {
        **{"mAP": "59.2", "conv": "0.293", "fc": "0.089", "without": "0.382", "conv_fc": "38x", "limit": "24x"}
    },
    "rcnn": {"mAP": "59.2", "conv": "14.37", "fc": "0.089", "without": "14.46"},
}
_STAGES = ("decode", "proposals", "warp", "conv", "pool", "fc", "select")
_SOURCE = "paper: He et al. 2015, table 10, all of VOC2007 test on a GeForce GTX Titan; no proposals in its times"

Row = tuple[str, str, Callable[[str], str]]


def format_table10(results: Mapping[str, Any]) -> str:
    """Return the table of a race: a column for each detector, the paper's beside it if it has one, and the machine.

    results: the content of benchmark.json. Numbers in brackets are quartiles over images, of mAP its 95 % interval.
    """
    detectors = results["detectors"]
    head = ["seconds per image"]
    for name in detectors:
        head += [name, "paper"] if name in PAPER else [name]
    table = [head]
    for title, key, show in _rows(results):
        cells = [title]
        for name in detectors:
            cells += [show(name), PAPER[name].get(key, "")] if name in PAPER else [show(name)]
        if any(cells[1:]):
            table.append(cells)
    note = "median over {} images, (quartiles); mAP with its (95 % interval)".format(len(results["images"]))
    return "\n".join([_align(table), "", note, *_differences(results), _SOURCE, _machine(results["machine"])])


def _rows(results: Mapping[str, Any]) -> list[Row]:
    """Return for every row its title, its key in `PAPER` and what gives the text of a detector."""
    detectors, speedups = results["detectors"], results["speedups"]

    def stage(key: str) -> Callable[[str], str]:
        return lambda name: _times(detectors[name]["stages"].get(key), detectors[name]["quartiles"].get(key))

    def total(key: str) -> Callable[[str], str]:
        return lambda name: _times(detectors[name][key], detectors[name]["quartiles"][key])

    def ratio(key: str) -> Callable[[str], str]:
        return lambda name: _ratios(speedups.get(name, {}).get(key), speedups.get(name, {}).get(f"{key}_quartiles"))

    def part(key: str) -> Callable[[str], str]:
        return lambda name: _percent((detectors[name]["fractions"] or {}).get(key))

    def memory(name: str) -> str:
        value = detectors[name]["peak_memory_mb"]
        return "" if value is None else f"{value:.0f}"

    others = [name for measured in detectors.values() for name in measured["stages"] if name not in _STAGES]
    return [
        ("mAP VOC07, %", "mAP", lambda name: _accuracy(detectors[name]["map"])),
        *((name, name, stage(name)) for name in (*_STAGES, *dict.fromkeys(others))),
        ("total", "total", total("total")),
        ("total without decode, proposals", "without", total("total_without_proposals")),
        ("speed-up", "total_ratio", ratio("total")),
        ("speed-up without decode, proposals", "conv_fc", ratio("conv_fc")),
        ("its limit by operations of conv", "limit", ratio("limit")),
        *((f"{name}, part of the machine's peak", f"part {name}", part(name)) for name in ("conv", "pool", "fc")),
        ("peak memory, MB", "memory", memory),
    ]


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value < 9.9995 else f"{value:.2f}"


def _times(value: float | None, quartiles: Sequence[float] | None) -> str:
    if value is None or quartiles is None:
        return ""
    return f"{_seconds(value)} ({_seconds(quartiles[0])}-{_seconds(quartiles[1])})"


def _ratios(value: float | None, quartiles: Sequence[float] | None) -> str:
    if value is None:
        return ""
    digits = 1 if value < 10 else 0
    spread = "" if quartiles is None else f" ({quartiles[0]:.{digits}f}-{quartiles[1]:.{digits}f})"
    return f"{value:.{digits}f}x{spread}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _accuracy(measured: Mapping[str, float] | None) -> str:
    if measured is None:
        return ""
    return f"{100 * measured['voc07']:.1f} ({100 * measured['low']:.1f}-{100 * measured['high']:.1f})"


def _differences(results: Mapping[str, Any]) -> list[str]:
    baseline = results.get("settings", {}).get("baseline") or "the baseline"
    return [
        f"mAP of {name} minus that of {baseline}: {100 * row['difference']:+.1f} points, 95 % interval "
        f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}"
        for name, row in results["map_differences"].items()
    ]


def _machine(machine: Mapping[str, Any]) -> str:
    """Return one line about the machine."""
    words = [machine["cpu"], f"{machine['cores']} cores", f"{machine['threads']} threads"]
    words += [f"{value:.0f} GFLOP/s {kind}" for kind, value in machine["gemm_gflops"].items()]
    if machine["bandwidth_gbs"]:
        words.append(f"{machine['bandwidth_gbs']:.0f} GB/s")
    return "machine: " + ", ".join([*words, f"torch {machine['packages'].get('torch', 'unknown')}"])


def _align(table: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in table
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
