"""Write what a benchmark measured as one HTML page that needs nothing else: no script, no network, pictures inside."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .files import write_text
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
:root { color-scheme: light; --line: #d8d8d8; --quiet: #5a5a5a; } * { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.2rem; color: #222; background: #fff; overflow-wrap: anywhere;
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .4rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.lead { font-size: 1.15rem; } .quiet { color: var(--quiet); font-size: .9rem; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; vertical-align: top; }
th, td { border-bottom: 1px solid var(--line); } tbody th { text-align: left; } small { display: block; }
small { color: var(--quiet); } .words td { text-align: left; white-space: normal; min-width: 14rem; }
.beside thead tr:first-child th { text-align: center; }
.beside th:nth-child(5), .beside td:nth-child(5), .beside .ours { border-left: 2px solid #888; }
.swatch { display: inline-block; width: .75em; height: .75em; margin-right: .45em; border-radius: 2px;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
figure { margin: .5rem 0; } img { display: block; width: 100%; height: auto; }
code { font-size: .9em; background: #f3f3f3; padding: .1em .35em; }
ul { columns: 17rem; padding-left: 1.2rem; font-size: .85rem; margin: 0; }
@media (max-width: 40rem) { body { padding: .8rem; } img { min-width: 38rem; } th, td { padding: .3rem .45rem; } }
@media print { @page { margin: 14mm; } body { max-width: none; padding: 0; font-size: .75rem; } img { min-width: 0; }
  .wide { overflow: visible; } table, figure { break-inside: avoid; } h2 { break-after: avoid; } }
"""


class _Markup(str):
    """Hold text that is HTML already; any other text is escaped on its way into the page."""

    __slots__ = ()


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
    body = [_header(results)]
    for title, render in sections.items():
        content = render(results)
        if content:
            body.append(
                _Markup(f'<section id="{render.__name__[1:]}">\n<h2>{_escape(title)}</h2>\n{content}\n</section>')
            )
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_TITLE}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )
    write_text(path, page)


def _escape(value: object) -> _Markup:
    return value if isinstance(value, _Markup) else _Markup(html.escape(str(value)))


def _data(value: float | None, show: Callable[[float], str]) -> _Markup:
    """Return a number as it is read, with the number itself behind it; a dash for none."""
    return _Markup("&ndash;") if value is None else _Markup(f'<data value="{value!r}">{_escape(show(value))}</data>')


def _between(ends: Sequence[float] | None, show: Callable[[float], str]) -> _Markup:
    """Return two ends in small print, nothing for none."""
    return _Markup("") if ends is None else _Markup(f"<small>{_data(ends[0], show)} to {_data(ends[1], show)}</small>")


def _percent(part: float) -> str:
    return f"{100 * part:.1f}"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}"


def _table(
    heads: Sequence[object], rows: Sequence[Sequence[object]], note: str, kind: str = "", above: str = ""
) -> _Markup:
    """Return a table and its note, nothing without rows. A row's first cell names it; `above`: more heads."""
    first = "".join(f'<th scope="col">{_escape(head)}</th>' for head in heads)
    head = f"<thead>{above}<tr>{first}</tr></thead>" if heads else ""
    body = "\n".join(
        f'<tr><th scope="row">{_escape(name)}</th>{"".join(f"<td>{_escape(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in rows
    )
    table = f'<div class="wide"><table class="{kind}">{head}<tbody>\n{body}\n</tbody></table></div>{_note(note)}'
    return _Markup(table if rows else "")


def _note(text: str) -> _Markup:
    return _Markup(f'<p class="quiet">{_escape(text)}</p>' if text else "")


def _header(results: Mapping[str, Any]) -> _Markup:
    detectors, baseline = results["detectors"], results.get("settings", {}).get("baseline")
    count = len(results.get("images", ()))
    number = f"{count} image{'s' if count != 1 else ''}"
    first = next((name for name in detectors if name != baseline), next(iter(detectors)))
    if results.get("speedup"):
        ratios = {key: _data(ratio, format_ratio) for key, ratio in results["speedup"].items()}
        lead = (
            f"On {number}, <b>{_escape(first)}</b> was <b>{ratios['conv_fc']}</b> as fast as "
            f"<b>{_escape(baseline)}</b> once there are proposals, and <b>{ratios['total']}</b> with decoding and "
            "proposals counted on both sides."
        )
    else:
        times = {key: _data(detectors[first][key], format_seconds) for key in ("total", "total_without_proposals")}
        lead = (
            f"On {number}, <b>{_escape(first)}</b> took <b>{times['total']}</b> per image, "
            f"<b>{times['total_without_proposals']}</b> once there are proposals."
        )
    words = f"{results.get('date', '')} Medians over images; ratios are medians of ratios of paired times."
    notes = _note(words.strip()) + _note(results.get("note", ""))
    return _Markup(f'<header>\n<h1>{_TITLE}</h1>\n<p class="lead">{lead}</p>\n{notes}\n</header>')


def _picture(results: Mapping[str, Any], plot: Callable[[Mapping[str, Any], Path], None], words: str) -> _Markup:
    with TemporaryDirectory() as folder:
        plot(results, Path(folder) / "plot.png")
        content = base64.b64encode((Path(folder) / "plot.png").read_bytes()).decode()
    image = f'<img alt="{_escape(words)}" src="data:image/png;base64,{content}">'
    return _Markup(f'<figure><div class="wide">{image}</div></figure>')


def _race(results: Mapping[str, Any]) -> _Markup:
    totals = [f"{name} {format_seconds(measured['total'])}" for name, measured in results["detectors"].items()]
    return _picture(results, plot_race, f"Bars of the time per image: {', '.join(totals)}.")


def _swatch(stage: str) -> _Markup:
    return _Markup(f'<span class="swatch" style="background:{STAGE_COLOURS[stage]}"></span>{_escape(stage)}')


def _table_10(results: Mapping[str, Any]) -> _Markup:
    """Lay our numbers beside the paper's; stages that the paper does not list stand in rows of ours alone."""
    columns: list[Mapping[str, Any]] = list(_PAPER.values())
    for name, measured in results["detectors"].items():
        accuracy = (measured.get("map") or {}).get("voc07")
        ratio = results.get("speedups", {}).get(name, {}).get("conv_fc")
        columns.append({**measured, **measured["stages"], "map": accuracy, "speedup": ratio})
    shown: list[tuple[str, str, Callable[[float], str]]] = [("map", "mAP, %", _percent)]
    shown += [(stage, stage, format_seconds) for stage in ("warp", "conv", "pool", "fc", "select")]
    shown += [("total_without_proposals", "total", format_seconds), ("speedup", "speed-up", format_ratio)]
    rows = [
        [label, *(_data(column.get(key), show) for column in columns)]
        for key, label, show in shown
        if any(column.get(key) is not None for column in columns)
    ]
    above = (
        f'<tr><td></td><th scope="colgroup" colspan="{len(_PAPER)}">paper</th>'
        f'<th scope="colgroup" colspan="{len(results["detectors"])}" class="ours">ours</th></tr>'
    )
    note = (
        "Paper: He et al. 2015, arXiv 1406.4729v4, table 10: VOC 2007, the trunk ZF-5 on a GeForce GTX Titan, with box "
        "regression. It gives no times of pooling and selection. Proposals are in no column."
    )
    return _table(["", *_PAPER, *results["detectors"]], rows, note, "beside", above)


def _stages(results: Mapping[str, Any]) -> _Markup:
    detectors = results["detectors"]
    rows = []
    for stage in STAGE_COLOURS:
        if any(stage in measured["stages"] for measured in detectors.values()):
            cells = [_time(measured, stage, measured["stages"].get(stage)) for measured in detectors.values()]
            rows.append([_swatch(stage), *cells])
    for key, label in (("total_without_proposals", "total, proposals not counted"), ("total", "total")):
        rows.append([_escape(label), *(_time(measured, key, measured[key]) for measured in detectors.values())])
    memory = [measured.get("peak_memory_mb") for measured in detectors.values()]
    if any(value is not None for value in memory):
        rows.append([_escape("peak memory"), *(_data(value, lambda mb: f"{mb:.0f} MB") for value in memory)])
    note = "Medians, with quartiles below them. Totals are medians of sums, not sums of medians."
    return _table(["", *detectors], rows, note)


def _time(measured: Mapping[str, Any], key: str, seconds: float | None) -> _Markup:
    quartiles = measured.get("quartiles", {}).get(key)
    return _Markup(_data(seconds, format_seconds) + _between(quartiles, format_seconds))


def _speedups(results: Mapping[str, Any]) -> _Markup:
    rows = []
    for name, ratios in results.get("speedups", {}).items():
        spreads = [_between(ratios.get(f"{key}_quartiles"), format_ratio) for key in ("conv_fc", "total")]
        medians = [_data(ratios[key], format_ratio) for key in ("conv_fc", "total")]
        cells = [_Markup(median + spread) for median, spread in zip(medians, spreads, strict=True)]
        rows.append([name, *cells, _data(ratios.get("limit"), format_ratio)])
    note = (
        f"How many times as fast as {results.get('settings', {}).get('baseline')}: medians and quartiles over images "
        "of ratios of paired times. The limit is what the multiply-adds of the trunk alone would allow; large maps may "
        "run nearer the machine's peak than small crops, so that a measured ratio can exceed it."
    )
    return _table(["", "proposals not counted", "all stages", "limit by multiply-adds"], rows, note)


def _fractions(results: Mapping[str, Any]) -> _Markup:
    rows = []
    for name, measured in results["detectors"].items():
        fractions, work = measured.get("fractions") or {}, measured.get("operations") or {}
        shares = [_data(fractions.get(stage), lambda part: f"{_percent(part)} %") for stage in ("conv", "fc", "pool")]
        counts = [_data(work.get(stage), lambda count: f"{count / 1e9:,.1f} GFLOP") for stage in ("conv", "fc")]
        counts.append(_data(work.get("pool"), lambda count: f"{count / 1e9:,.2f} GB"))
        if fractions:
            rows.append([name, *(_Markup(f"{a}<small>{b}</small>") for a, b in zip(shares, counts, strict=True))])
    note = (
        "conv and fc: of the peak of matrix products in the number type of the engine; pool: of the peak of memory "
        "bandwidth. Below: the work on one image."
    )
    return _table(["", *(_swatch(stage) for stage in ("conv", "fc", "pool"))], rows, note)


def _accuracy(results: Mapping[str, Any]) -> _Markup:
    differences = results.get("map_differences", {})
    rows = []
    for name, measured in results["detectors"].items():
        found, less = measured.get("map"), differences.get(name)
        if found:
            cells = [_data(found["voc07"], _percent) + _between([found["low"], found["high"]], _percent)]
            if differences:
                ends = [less["low"], less["high"]] if less else None
                cells.append(_data(less["difference"] if less else None, _points) + _between(ends, _points))
            rows.append([name, *map(_Markup, cells)])
    baseline = results.get("settings", {}).get("baseline")
    heads = ["", "mAP (VOC 2007), %", *([f"minus {baseline}, points"] if differences else [])]
    return _table(heads, rows, "With bootstrap intervals over images.")


def _sweep(results: Mapping[str, Any]) -> _Markup:
    sweep = results.get("sweep")
    if not sweep:
        return _Markup("")
    picture = _picture(results, plot_sweep, f"Lines of the time per image against the swept {sweep['kind']}.")
    totals = [times["total_without_proposals"] for times in sweep["detectors"].values()]
    rows = [
        [f"{value:g}", *(_data(seconds, format_seconds) for seconds in column)]
        for value, *column in zip(sweep["values"], *totals, strict=True)
    ]
    return _Markup(picture + _table([sweep["kind"], *sweep["detectors"]], rows, "Totals, proposals not counted."))


def _machine(results: Mapping[str, Any]) -> _Markup:
    settings = results.get("settings", {})
    rows = [["command", _Markup(f"<code>{_escape(settings['command'])}</code>")]] if settings.get("command") else []
    fields = {**{key: value for key, value in settings.items() if key != "command"}, **results.get("machine", {})}
    rows += [[_name(key), _words(value)] for key, value in fields.items() if value is not None]
    for name, measured in results["detectors"].items():
        known = [(key, measured.get(key)) for key in ("kind", "model", "engine", "scales")]
        rows.append([name, "; ".join(f"{key} {_words(value)}" for key, value in known if value)])
    return _table([], rows, "", "words")


def _name(key: str) -> str:
    """Return the name of a field in words, with its unit."""
    words = {"gemm_gflops": "matrix products, GFLOP/s", "bandwidth_gbs": "bandwidth, GB/s", "memory_gb": "memory, GB"}
    return words.get(key, key.replace("_", " "))


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {content}" for name, content in value.items())
    return ", ".join(str(entry) for entry in value) if isinstance(value, list | tuple) else str(value)


def _images(results: Mapping[str, Any]) -> _Markup:
    lines = []
    for image in results.get("images", ()):
        size = f"{image['height']} x {image['width']}"
        lines.append(f"<li>{_escape(image['image'])}: {_escape(size)}, {_escape(image['proposals'])} proposals</li>")
    note = _note("Height x width in pixels, and how many boxes each detector was given.")
    return _Markup(f'<ul class="images">{"".join(lines)}</ul>{note}') if lines else _Markup("")
