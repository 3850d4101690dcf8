"""Build HTML pages that need nothing else: no script, no network, pictures inside, one style for all of them."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from .files import write_text

STYLE = """
:root { color-scheme: light; --line: #d8d8d8; --quiet: #5a5a5a; } * { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.2rem; color: #222; background: #fff; overflow-wrap: anywhere;
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .4rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.lead { font-size: 1.15rem; } .quiet { color: var(--quiet); font-size: .9rem; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; vertical-align: top; }
th, td { border-bottom: 1px solid var(--line); } tbody th { text-align: left; } small { display: block; }
small { color: var(--quiet); } .words td { text-align: left; white-space: normal; min-width: 14rem; }
.swatch { display: inline-block; width: .75em; height: .75em; margin-right: .45em; border-radius: 2px;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
figure { margin: .5rem 0; } img { display: block; width: 100%; height: auto; }
code { font-size: .9em; background: #f3f3f3; padding: .1em .35em; }
@media (max-width: 40rem) { body { padding: .8rem; } img { min-width: 38rem; } th, td { padding: .3rem .45rem; } }
@media print { @page { margin: 14mm; } body { max-width: none; padding: 0; font-size: .75rem; } img { min-width: 0; }
  .wide { overflow: visible; } table, figure { break-inside: avoid; } h2 { break-after: avoid; } }
"""
# Whatever text from outside slips in, the browser is told to run and to fetch nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Markup(str):
    """Hold text that is HTML already; any other text is escaped on its way into the page."""

    __slots__ = ()


def escape(value: object) -> Markup:
    """Return a value as text that means itself in HTML; markup stays as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def data(value: float | None, show: Callable[[float], str]) -> Markup:
    """Return a number as it is read, with the number itself behind it; a dash for none and for NaN."""
    if value is None or math.isnan(value):
        return Markup("&ndash;")
    return Markup(f'<data value="{value!r}">{escape(show(value))}</data>')


def between(ends: Sequence[float] | None, show: Callable[[float], str]) -> Markup:
    """Return two ends in small print, nothing for none."""
    return Markup("") if ends is None else Markup(f"<small>{data(ends[0], show)} to {data(ends[1], show)}</small>")


def percent(part: float) -> str:
    """Return a part of one in per cent, with one decimal."""
    return f"{100 * part:.1f}"


def points(difference: float) -> str:
    """Return a difference of parts of one in points of per cent, with its sign."""
    return f"{100 * difference:+.1f}"


def table(
    heads: Sequence[object], rows: Sequence[Sequence[object]], words: str, kind: str = "", above: str = ""
) -> Markup:
    """Return a table and a note on it, nothing without rows.

    A row's first cell names it. kind: classes of style. above: rows of HTML over the heads.
    """
    first = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    head = f"<thead>{above}<tr>{first}</tr></thead>" if heads else ""
    body = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in rows
    )
    content = f'<div class="wide"><table class="{kind}">{head}<tbody>\n{body}\n</tbody></table></div>{note(words)}'
    return Markup(content if rows else "")


def note(words: str) -> Markup:
    """Return a paragraph in quiet print, nothing for no words."""
    return Markup(f'<p class="quiet">{escape(words)}</p>' if words else "")


def swatch(colour: str, words: str) -> Markup:
    """Return a small square of a colour, `#rrggbb`, and what it stands for."""
    return Markup(f'<span class="swatch" style="background:{escape(colour)}"></span>{escape(words)}')


def image(content: bytes, words: str, kind: str = "png") -> Markup:
    """Return a picture that lies inside the page. content: a file of this kind; words: said to who cannot see it."""
    return Markup(f'<img alt="{escape(words)}" src="data:image/{kind};base64,{base64.b64encode(content).decode()}">')


def plot(content: bytes, words: str) -> Markup:
    """Return a PNG as wide as the page; where that is too narrow to read it, it scrolls."""
    return Markup(f'<figure><div class="wide">{image(content, words)}</div></figure>')


def section(name: str, title: str, content: str) -> Markup:
    """Return a section with its heading; nothing without content, so that what is not known leaves no shell."""
    return Markup(f'<section id="{name}">\n<h2>{escape(title)}</h2>\n{content}\n</section>' if content else "")


def write_page(path: Path, title: str, parts: Sequence[str], style: str = "") -> None:
    """Write a page, whole or not at all. parts: HTML, one below the other; style: rules of this page alone."""
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )
    write_text(path, page)
