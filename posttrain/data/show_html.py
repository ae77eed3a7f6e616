"""Rows as one HTML page that stands by itself: no scripts, no fonts, nothing fetched; light, dark, and on a phone."""

from __future__ import annotations

from html import escape
from itertools import groupby

from .show import MEANINGS, Shown, Token, table, visible
from .tokenizer import TokenizerSpec

# What token colours need; reports carry it too.
MASK_STYLE = """
:root { --content: #c9efcf; --scaffold: #cfe4fb; --stop: #f3c6ee; --text: #c9efcf; }
@media (prefers-color-scheme: dark) { :root { --content: #1d4d2a; --scaffold: #1c3f63; --stop: #5f2459;
  --text: #1d4d2a; } }
pre.mask { border: 1px solid var(--line); border-radius: .4rem; font: 14px/1.7 ui-monospace, Consolas, monospace;
  margin: .5rem 0; overflow-wrap: anywhere; padding: .7rem; white-space: pre-wrap; }
span.w { border-bottom: 2px solid currentColor; } span.content, span.text { background: var(--content); }
span.scaffold { background: var(--scaffold); } span.stop { background: var(--stop); font-weight: bold; }
span.prompt, span.untrained { color: var(--soft); } span.untrained { font-style: italic; }
pre.mask span:hover { outline: 1px solid currentColor; }
ul.legend { list-style: none; padding: 0; } ul.legend li { margin: .2rem 0; } ul.legend span { padding: 0 .3rem; }
"""
_STYLE = """
:root { color-scheme: light dark; --back: #fff; --front: #1d1f23; --soft: #667; --line: #ddd; }
@media (prefers-color-scheme: dark) { :root { --back: #15171b; --front: #e8e8ea; --soft: #9aa; --line: #333; } }
body { background: var(--back); color: var(--front); font: 16px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 60rem; padding: 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin: 2rem 0 0; overflow-wrap: anywhere; }
p.sum { color: var(--soft); margin: 0 0 .5rem; }
"""


def to_html(shown: list[Shown], spec: TokenizerSpec, title: str = "Which tokens are trained") -> str:
    """Shown rows as a page; hovering over a token shows its id, weight and reason."""
    parts = [
        "<!doctype html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">', f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}{MASK_STYLE}</style>", "</head>", "<body>", f"<h1>{escape(title)}</h1>",
        f"<p>Template <b>{escape(spec.template_name)}</b>: {escape(spec.template_reason)}. "
        f"Generation stops at {', '.join(f'<code>{escape(t)}</code>' for t, _ in spec.stops)}. "
        "Trained tokens are underlined.</p>", legend_html()]
    for row in table(shown, spec):
        parts += [f"<h2>{escape(row['origin'])} · {escape(row['why'])}</h2>",
                  f'<p class="sum">{escape(row["summary"])}</p>']
        parts += [mask_html(tokens) for tokens in row["sequences"]]
    return "\n".join([*parts, "</body>", "</html>", ""])


def legend_html() -> str:
    """What the colours mean."""
    items = [f'<li><span class="{r}{" w" if r not in ("prompt", "untrained") else ""}">{r}</span> {escape(m)}</li>'
             for r, m in MEANINGS.items()]
    return f'<ul class="legend">{"".join(items)}</ul>'


def mask_html(tokens: list[Token]) -> str:
    """A sequence in its colours: trained tokens one span each; a masked stretch of one reason shares one."""
    made = []
    for (reason, trained), group in groupby(tokens, key=lambda t: (t.reason, t.weight != 0)):
        group = list(group)
        if not trained:
            text = escape(visible("".join(t.text for t in group)))
            made.append(f'<span class="{reason}" title="{reason}, weight 0, {len(group)} tokens">{text}</span>')
            continue
        for t in group:
            made.append(f'<span class="{reason} w" title="{t.id}, weight {t.weight:g}, {reason}">'
                        f"{escape(visible(t.text))}</span>")
    return f'<pre class="mask">{"".join(made)}</pre>'
