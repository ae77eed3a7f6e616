"""The frame of a report: one HTML page that stands by itself. No network, light and dark, readable on a phone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from html import escape
from typing import Any

from ..data.show_html import MASK_STYLE

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --card: #f6f7f9; --front: #1d1f23; --soft: #596070; --line: #d8dbe2;
  --a: #1f6feb; --b: #c2410c; --good: #15803d; --bad: #b91c1c; }
@media (prefers-color-scheme: dark) { :root { --back: #15171b; --card: #1d2026; --front: #e8e8ea; --soft: #9ba3b1;
  --line: #343944; --a: #6ea8fe; --b: #fb923c; --good: #4ade80; --bad: #f87171; } }
* { box-sizing: border-box; }
body { background: var(--back); color: var(--front); font: 16px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 64rem; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; } p { margin: .4rem 0; } .soft { color: var(--soft); }
.good { color: var(--good); } .bad { color: var(--bad); } .scroll { overflow-x: auto; }
nav a { margin-right: .9rem; white-space: nowrap; color: var(--a); }
table { border-collapse: collapse; font-size: .92rem; min-width: 50%; } th, td { border-bottom: 1px solid var(--line);
  overflow-wrap: normal; padding: .35rem .7rem .35rem 0; text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
td.n { font-variant-numeric: tabular-nums; white-space: nowrap; } td small { color: var(--soft); display: block; }
.long, pre.text { overflow-wrap: anywhere; }
pre, code { font: 13px/1.5 ui-monospace, Consolas, monospace; } pre.text { white-space: pre-wrap; margin: .2rem 0;
  background: var(--card); border-radius: .4rem; padding: .5rem .7rem; }
details { border-bottom: 1px solid var(--line); padding: .4rem 0; } summary { cursor: pointer; }
figure { margin: 1rem 0; } figcaption { color: var(--soft); font-size: .9rem; }
svg.curve { width: 100%; height: auto; display: block; background: var(--card); border-radius: .4rem;
  touch-action: pan-y; }
svg.curve text { fill: var(--soft); font: 12px system-ui, sans-serif; } svg.curve .grid { stroke: var(--line); }
svg.curve polyline { fill: none; stroke-width: 1.6; } svg .s0 { stroke: var(--a); } svg .s1 { stroke: var(--b); }
svg circle.s0 { fill: var(--a); stroke: none; } svg circle.s1 { fill: var(--b); stroke: none; }
svg .cross { stroke: var(--front); stroke-dasharray: 3 3; visibility: hidden; }
i.s0, i.s1 { display: inline-block; width: .9rem; height: .2rem; vertical-align: middle; margin-right: .3rem; }
i.s0 { background: var(--a); } i.s1 { background: var(--b); }
@media (max-width: 600px) { svg.curve text { font-size: 17px; } table { font-size: .85rem; }
  th, td { padding-right: .5rem; } }
output { display: block; min-height: 1.5em; font-size: .9rem; font-variant-numeric: tabular-nums; }
"""

LONG = re.compile(r"\S{25}")  # a word that may break in a table: a path, a checksum

_SCRIPT = """
for (const figure of document.querySelectorAll("figure[data-curve]")) {
  const data = JSON.parse(figure.querySelector("script").textContent), svg = figure.querySelector("svg");
  const cross = svg.querySelector(".cross"), said = figure.querySelector("output");
  const show = event => {
    const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * data.width;
    const step = data.low + (x - data.left) / data.span * (data.high - data.low);
    let best = null;
    for (const row of data.rows) if (!best || Math.abs(row[0] - step) < Math.abs(best[0] - step)) best = row;
    if (!best) return;
    const at = data.left + (best[0] - data.low) / Math.max(1e-9, data.high - data.low) * data.span;
    cross.setAttribute("x1", at); cross.setAttribute("x2", at); cross.style.visibility = "visible";
    said.textContent = "update " + best[0] + ": " + data.names.map((name, i) => best[i + 1] === null ? "" :
      name + " " + Number(best[i + 1].toPrecision(5))).filter(Boolean).join(", ");
  };
  svg.addEventListener("pointermove", show); svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", () => { cross.style.visibility = "hidden"; });
}
"""


def page(title: str, sections: Iterable[tuple[str, str]], lead: str = "") -> str:
    """Sections (heading, HTML) under a title, with links to each; empty ones are left out."""
    kept = [(name, body) for name, body in sections if body]
    links = "".join(f'<a href="#s{n}">{escape(name)}</a> ' for n, (name, _) in enumerate(kept))
    parts = [
        "<!doctype html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; """
        """script-src 'unsafe-inline'; img-src data:">""",
        '<link rel="icon" href="data:,">', f"<title>{escape(title)}</title>", f"<style>{_STYLE}{MASK_STYLE}</style>",
        "</head>", "<body>", f"<h1>{escape(title)}</h1>", lead, f"<nav>{links}</nav>"]
    parts += [f'<section><h2 id="s{n}">{escape(name)}</h2>{body}</section>' for n, (name, body) in enumerate(kept)]
    return "\n".join([*parts, f"<script>{_SCRIPT}</script>", "</body>", "</html>", ""])


def rows_table(head: list[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table; cells are escaped unless they are Html. A column of which every cell is empty is left out."""
    lines = [list(row) for row in rows]
    kept = [n for n in range(len(head)) if any(line[n] not in ("", None) for line in lines)]
    body = "".join("<tr>" + "".join(cell(line[n]) for n in kept) + "</tr>" for line in lines)
    top = "".join(f"<th{_long(head[n])}>{escape(head[n])}</th>" for n in kept)
    made = f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    return made if body else ""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def cell(value: Any) -> str:
    if isinstance(value, Html):
        return f"<td>{value}</td>"
    if isinstance(value, bool) or value is None:
        return f"<td>{'' if value is None else str(value).lower()}</td>"
    if isinstance(value, int | float):
        return f'<td class="n">{value:,}</td>' if isinstance(value, int) else f'<td class="n">{value:.5g}</td>'
    return f"<td{_long(str(value))}>{escape(str(value))}</td>"


def _long(value: str) -> str:
    return ' class="long"' if LONG.search(value) else ""


def text(value: str) -> Html:
    """Text with its line ends, in a box."""
    return Html(f'<pre class="text">{escape(value)}</pre>')


def noted(value: str, note: str) -> Html:
    """A value with a remark below it, in small letters."""
    return Html(f"<span{_long(value)}>{escape(value)}</span><small>{escape(note)}</small>")


def paragraph(value: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(value)}</p>' if kind else f"<p>{escape(value)}</p>"


def embedded(value: Any) -> str:
    """JSON for a script element: nothing in it can end that element."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")
