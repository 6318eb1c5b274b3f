"""Pieces of a self-contained HTML page: escaped text, tables, charts as inline SVG. Imports: the standard library.

Nothing here asks for anything from a network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root{color-scheme:light dark;--ink:#1d2430;--soft:#667085;--line:#e3e7ee;--page:#f6f7f9;--card:#fff;--bar:#4f7cac;
--train:#4f7cac;--val:#e3a857;--test:#7aa874;--bad:#b42318;--badbg:#fef3f2;--note:#93610c;--notebg:#fffaeb;--good:#2f7d4f}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--soft:#98a2b3;--line:#303846;--page:#14181f;--card:#1c222b;
--bar:#79a6d6;--train:#79a6d6;--bad:#ff8a7d;--badbg:#3a1d1a;--note:#f0c36d;--notebg:#33290f;--good:#7fce9f}}
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);font:14px/1.45 system-ui,sans-serif}
main{max-width:1280px;margin:0 auto;padding:28px 20px 60px}h1{font-size:22px;margin:0 0 2px}
h2{font-size:16px;margin:30px 0 10px}.soft{color:var(--soft)}
.num{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.cards{display:flex;flex-wrap:wrap;gap:10px;margin-top:16px}.card{background:var(--card);border:1px solid var(--line);
border-radius:8px;padding:9px 14px;min-width:104px}
.card b{display:block;font-size:19px;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:8px}
table{border-collapse:collapse;width:100%}th{font-weight:600;text-align:left;color:var(--soft);font-size:12px}
th,td{padding:6px 8px;border-bottom:1px solid var(--line);vertical-align:middle}tr:last-child td{border-bottom:0}
td.name{font-weight:600;max-width:230px;overflow-wrap:break-word}
td.top{min-width:130px;max-width:300px;overflow-wrap:break-word}
ul.found{list-style:none;margin:0;padding:0}ul.found li{border-left:4px solid var(--bad);background:var(--badbg);
padding:8px 12px;margin:0 0 6px;border-radius:0 6px 6px 0;overflow-wrap:anywhere}
ul.found li.note{border-color:var(--note);background:var(--notebg)}
.mend{color:var(--soft)}.bad{color:var(--bad);font-weight:600}.warn{color:var(--note);font-weight:600}
.good{color:var(--good)}svg{display:block}svg rect.bar{fill:var(--bar)}svg rect.track{fill:var(--line)}
svg rect.train{fill:var(--train)}svg rect.val{fill:var(--val)}svg rect.test{fill:var(--test)}
svg rect.new{fill:var(--val)}i.key{display:inline-block;width:10px;height:10px;border-radius:2px;margin:0 4px 0 12px}
"""


def page(title: str, subtitle: str, body: Iterable[str]) -> str:
    """A whole document. `title` and `subtitle` are plain text, `body` is markup."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f'<h1>{escape(title)}</h1><div class="soft">{escape(subtitle)}</div>{"".join(body)}</main></body></html>\n'
    )


def cards(figures: Iterable[tuple[str, str]]) -> str:
    """Figures side by side: (what it is, the figure)."""
    inner = "".join(
        f'<div class="card"><b>{escape(value)}</b>{escape(name)}</div>' for name, value in figures
    )
    return f'<div class="cards">{inner}</div>'


def table(heads: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]]) -> str:
    """`heads` are (CSS class, plain text); cells are markup."""
    head = "".join(f'<th class="{css}">{escape(text)}</th>' for css, text in heads)
    lines = (
        "<tr>"
        + "".join(f'<td class="{css}">{cell}</td>' for (css, _), cell in zip(heads, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def histogram(counts: Sequence[float], hints: Sequence[str], *, width: int = 150, height: int = 34) -> str:
    """Bars side by side; `hints` show under the pointer."""
    most, step = max(counts, default=0) or 1, width / max(1, len(counts))
    bars = "".join(
        f'<rect class="bar" x="{i * step:.1f}" y="{height - tall:.1f}" width="{max(1.0, step - 1):.1f}" '
        f'height="{tall:.1f}"><title>{escape(hint)}</title></rect>'
        for i, (count, hint) in enumerate(zip(counts, hints, strict=True))
        if (tall := max(1.0 if count else 0.0, height * count / most))
    )
    return f'<svg width="{width}" height="{height}" role="img">{bars}</svg>'


def pairs(old: Sequence[float], new: Sequence[float], hints: Sequence[str], *, width: int = 180) -> str:
    """Two shares side by side for each bin, the reference and the new data."""
    height, most, step = 34, max([*old, *new], default=0) or 1, width / max(1, len(old))
    bars = []
    for i, (first, second, hint) in enumerate(zip(old, new, hints, strict=True)):
        for j, (css, share) in enumerate((("bar", first), ("new", second))):
            tall = height * share / most
            bars.append(
                f'<rect class="{css}" x="{i * step + j * step * 0.44:.1f}" y="{height - tall:.1f}" '
                f'width="{max(1.0, step * 0.42):.1f}" height="{tall:.1f}"><title>{escape(hint)}</title></rect>'
            )
    return f'<svg width="{width}" height="{height}" role="img">{"".join(bars)}</svg>'


def stacked(counts: Sequence[int], classes: Sequence[str], most: int, *, width: int = 420) -> str:
    """One bar of several pieces, `most` being the full width."""
    pieces, place = [], 0.0
    for count, css in zip(counts, classes, strict=True):
        wide = width * count / max(1, most)
        pieces.append(
            f'<rect class="{css}" x="{place:.1f}" y="0" width="{wide:.1f}" height="14"><title>{css}: {count}</title>'
            "</rect>"
        )
        place += wide
    return f'<svg width="{width}" height="14" role="img">{"".join(pieces)}</svg>'


def figure(value: float) -> str:
    """A number as people write it, with four digits at least where it has them."""
    if not math.isfinite(value):
        return str(value)
    if (value == round(value) or abs(value) >= 1e3) and abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:.4g}"
