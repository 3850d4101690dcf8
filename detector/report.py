"""Write what a benchmark measured as one HTML page that needs nothing else: no script, no network, pictures inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .pages import Markup, between, data, escape, note, percent, plot, points, section, swatch, table, write_page
from .plots import STAGE_COLOURS, format_ratio, format_seconds, plot_race, plot_sweep

FORMAT = "sppnet-benchmark-1"
_TITLE = "sppnet benchmark: the race of detectors"
# He et al. 2015, table 10 (arXiv 1406.4729v4): VOC 2007, ZF-5, GeForce GTX Titan, proposals not counted.
_PAPER = {
    "SPP 1-scale": {"map": 0.580, "conv": 0.053, "fc": 0.089, "total_without_proposals": 0.142, "speedup": 102},
    "SPP 5-scale": {"map": 0.592, "conv": 0.293, "fc": 0.089, "total_without_proposals": 0.382, "speedup": 38},
    "R-CNN": {"map": 0.592, "conv": 14.37, "fc": 0.089, "total_without_proposals": 14.46},
}
_STYLE = """
.beside thead tr:first-child th { text-align: center; }
.beside th:nth-child(5), .beside td:nth-child(5), .beside .ours { border-left: 2px solid #888; }
ul { columns: 17rem; padding-left: 1.2rem; font-size: .85rem; margin: 0; }
"""


def write_report(results: Mapping[str, Any], path: Path) -> None:
    """Write the page of a benchmark, whole or not at all; what was not measured has no section.

    results: the content of benchmark.json: seconds, mean average precision in [0, 1]. Every time and ratio stands in a
    `data` element whose `value` is the number of the JSON, unrounded. Raises ValueError if the format is another one.
    """
    if results.get("format") != FORMAT:
        raise ValueError(f"{path}: expected results of format {FORMAT!r}, got {results.get('format')!r}")
    sections = {
        **{"Where the time goes": _race, "Beside table 10 of the paper": _table_10, "Stages, per image": _stages},
        **{"Speed-ups, and what arithmetic allows": _speedups, "Part of the machine's peaks": _fractions},
        **{"Accuracy": _accuracy, "How the time grows": _sweep, "Machine and settings": _machine, "Images": _images},
    }
    parts: list[str] = [_header(results)]
    parts += [section(render.__name__[1:], title, render(results)) for title, render in sections.items()]
    write_page(path, _TITLE, parts, _STYLE)


def _header(results: Mapping[str, Any]) -> Markup:
    detectors, baseline = results["detectors"], results.get("settings", {}).get("baseline")
    count = len(results.get("images", ()))
    number = f"{count} image{'s' if count != 1 else ''}"
    first = next((name for name in detectors if name != baseline), next(iter(detectors)))
    if results.get("speedup"):
        ratios = {key: data(ratio, format_ratio) for key, ratio in results["speedup"].items()}
        lead = (
            f"On {number}, <b>{escape(first)}</b> was <b>{ratios['conv_fc']}</b> as fast as "
            f"<b>{escape(baseline)}</b> once there are proposals, and <b>{ratios['total']}</b> with decoding and "
            "proposals counted on both sides."
        )
    else:
        times = {key: data(detectors[first][key], format_seconds) for key in ("total", "total_without_proposals")}
        lead = (
            f"On {number}, <b>{escape(first)}</b> took <b>{times['total']}</b> per image, "
            f"<b>{times['total_without_proposals']}</b> once there are proposals."
        )
    words = f"{results.get('date', '')} Medians over images; ratios are medians of ratios of paired times."
    notes = note(words.strip()) + note(results.get("note", ""))
    return Markup(f'<header>\n<h1>{_TITLE}</h1>\n<p class="lead">{lead}</p>\n{notes}\n</header>')


def _picture(results: Mapping[str, Any], draw: Callable[[Mapping[str, Any], Path], None], words: str) -> Markup:
    with TemporaryDirectory() as folder:
        draw(results, Path(folder) / "plot.png")
        return plot((Path(folder) / "plot.png").read_bytes(), words)


def _race(results: Mapping[str, Any]) -> Markup:
    totals = [f"{name} {format_seconds(measured['total'])}" for name, measured in results["detectors"].items()]
    return _picture(results, plot_race, f"Bars of the time per image: {', '.join(totals)}.")


def _swatch(stage: str) -> Markup:
    return swatch(STAGE_COLOURS[stage], stage)


def _table_10(results: Mapping[str, Any]) -> Markup:
    """Lay our numbers beside the paper's; stages that the paper does not list stand in rows of ours alone."""
    columns: list[Mapping[str, Any]] = list(_PAPER.values())
    for name, measured in results["detectors"].items():
        accuracy = (measured.get("map") or {}).get("voc07")
        ratio = results.get("speedups", {}).get(name, {}).get("conv_fc")
        columns.append({**measured, **measured["stages"], "map": accuracy, "speedup": ratio})
    shown: list[tuple[str, str, Callable[[float], str]]] = [("map", "mAP, %", percent)]
    shown += [(stage, stage, format_seconds) for stage in ("warp", "conv", "pool", "fc", "select")]
    shown += [("total_without_proposals", "total", format_seconds), ("speedup", "speed-up", format_ratio)]
    rows = [
        [label, *(data(column.get(key), show) for column in columns)]
        for key, label, show in shown
        if any(column.get(key) is not None for column in columns)
    ]
    above = (
        f'<tr><td></td><th scope="colgroup" colspan="{len(_PAPER)}">paper</th>'
        f'<th scope="colgroup" colspan="{len(results["detectors"])}" class="ours">ours</th></tr>'
    )
    words = (
        "Paper: He et al. 2015, arXiv 1406.4729v4, table 10: VOC 2007, the trunk ZF-5 on a GeForce GTX Titan, with box "
        "regression. It gives no times of pooling and selection. Proposals are in no column."
    )
    return table(["", *_PAPER, *results["detectors"]], rows, words, "beside", above)


def _stages(results: Mapping[str, Any]) -> Markup:
    detectors = results["detectors"]
    rows = []
    for stage in STAGE_COLOURS:
        if any(stage in measured["stages"] for measured in detectors.values()):
            cells = [_time(measured, stage, measured["stages"].get(stage)) for measured in detectors.values()]
            rows.append([_swatch(stage), *cells])
    for key, label in (("total_without_proposals", "total, proposals not counted"), ("total", "total")):
        rows.append([escape(label), *(_time(measured, key, measured[key]) for measured in detectors.values())])
    memory = [measured.get("peak_memory_mb") for measured in detectors.values()]
    if any(value is not None for value in memory):
        rows.append([escape("peak memory"), *(data(value, lambda mb: f"{mb:.0f} MB") for value in memory)])
    words = "Medians, with quartiles below them. Totals are medians of sums, not sums of medians."
    return table(["", *detectors], rows, words)


def _time(measured: Mapping[str, Any], key: str, seconds: float | None) -> Markup:
    quartiles = measured.get("quartiles", {}).get(key)
    return Markup(data(seconds, format_seconds) + between(quartiles, format_seconds))


def _speedups(results: Mapping[str, Any]) -> Markup:
    rows = []
    for name, ratios in results.get("speedups", {}).items():
        spreads = [between(ratios.get(f"{key}_quartiles"), format_ratio) for key in ("conv_fc", "total")]
        medians = [data(ratios[key], format_ratio) for key in ("conv_fc", "total")]
        cells = [Markup(median + spread) for median, spread in zip(medians, spreads, strict=True)]
        rows.append([name, *cells, data(ratios.get("limit"), format_ratio)])
    words = (
        f"How many times as fast as {results.get('settings', {}).get('baseline')}: medians and quartiles over images "
        "of ratios of paired times. The limit is what the multiply-adds of the trunk alone would allow; large maps may "
        "run nearer the machine's peak than small crops, so that a measured ratio can exceed it."
    )
    return table(["", "proposals not counted", "all stages", "limit by multiply-adds"], rows, words)


def _fractions(results: Mapping[str, Any]) -> Markup:
    rows = []
    for name, measured in results["detectors"].items():
        fractions, work = measured.get("fractions") or {}, measured.get("operations") or {}
        shares = [data(fractions.get(stage), lambda part: f"{percent(part)} %") for stage in ("conv", "fc", "pool")]
        counts = [data(work.get(stage), lambda count: f"{count / 1e9:,.1f} GFLOP") for stage in ("conv", "fc")]
        counts.append(data(work.get("pool"), lambda count: f"{count / 1e9:,.2f} GB"))
        if fractions:
            rows.append([name, *(Markup(f"{a}<small>{b}</small>") for a, b in zip(shares, counts, strict=True))])
    words = (
        "conv and fc: of the peak of matrix products in the number type of the engine; pool: of the peak of memory "
        "bandwidth. Below: the work on one image."
    )
    return table(["", *(_swatch(stage) for stage in ("conv", "fc", "pool"))], rows, words)


def _accuracy(results: Mapping[str, Any]) -> Markup:
    differences = results.get("map_differences", {})
    rows = []
    for name, measured in results["detectors"].items():
        found, less = measured.get("map"), differences.get(name)
        if found:
            cells = [data(found["voc07"], percent) + between([found["low"], found["high"]], percent)]
            if differences:
                ends = [less["low"], less["high"]] if less else None
                cells.append(data(less["difference"] if less else None, points) + between(ends, points))
            rows.append([name, *map(Markup, cells)])
    baseline = results.get("settings", {}).get("baseline")
    heads = ["", "mAP (VOC 2007), %", *([f"minus {baseline}, points"] if differences else [])]
    return table(heads, rows, "With bootstrap intervals over images.")


def _sweep(results: Mapping[str, Any]) -> Markup:
    sweep = results.get("sweep")
    if not sweep:
        return Markup("")
    picture = _picture(results, plot_sweep, f"Lines of the time per image against the swept {sweep['kind']}.")
    totals = [times["total_without_proposals"] for times in sweep["detectors"].values()]
    rows = [
        [f"{value:g}", *(data(seconds, format_seconds) for seconds in column)]
        for value, *column in zip(sweep["values"], *totals, strict=True)
    ]
    return Markup(picture + table([sweep["kind"], *sweep["detectors"]], rows, "Totals, proposals not counted."))


def _machine(results: Mapping[str, Any]) -> Markup:
    settings = results.get("settings", {})
    rows = [["command", Markup(f"<code>{escape(settings['command'])}</code>")]] if settings.get("command") else []
    fields = {**{key: value for key, value in settings.items() if key != "command"}, **results.get("machine", {})}
    rows += [[_name(key), _words(value)] for key, value in fields.items() if value is not None]
    for name, measured in results["detectors"].items():
        known = [(key, measured.get(key)) for key in ("kind", "model", "engine", "scales")]
        rows.append([name, "; ".join(f"{key} {_words(value)}" for key, value in known if value)])
    return table([], rows, "", "words")


def _name(key: str) -> str:
    """Return the name of a field in words, with its unit."""
    words = {"gemm_gflops": "matrix products, GFLOP/s", "bandwidth_gbs": "bandwidth, GB/s", "memory_gb": "memory, GB"}
    return words.get(key, key.replace("_", " "))


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {content}" for name, content in value.items())
    return ", ".join(str(entry) for entry in value) if isinstance(value, list | tuple) else str(value)


def _images(results: Mapping[str, Any]) -> Markup:
    lines = []
    for image in results.get("images", ()):
        size = f"{image['height']} x {image['width']}"
        lines.append(f"<li>{escape(image['image'])}: {escape(size)}, {escape(image['proposals'])} proposals</li>")
    words = note("Height x width in pixels, and how many boxes each detector was given.")
    return Markup(f'<ul class="images">{"".join(lines)}</ul>{words}') if lines else Markup("")
