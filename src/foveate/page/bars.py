"""What pruning saves as bars: plain HTML, because two bars of one number need no library."""

from __future__ import annotations

from html import escape

from foveate.inference.answer import Answer
from foveate.page.comparing import Side
from foveate.trace.records import PrefillTrace

CSS = """
.heading h3, #saved h3 {margin: 8px 0 8px; font-size: 15px; font-weight: 600;}
.card {background: var(--block-background-fill); border-radius: var(--block-radius); padding: 16px 18px 12px;
  box-shadow: var(--block-shadow);}
.card .note {opacity: .65; font-size: 12px; margin: 12px 0 0;}
.saved {display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 18px 28px; padding: 4px 2px;}
.saved h4 {margin: 0 0 6px; font-size: 13px; font-weight: 600; display: flex; justify-content: space-between; gap: 8px;}
.saved .ratio {color: #15803d; font-weight: 700;}
.saved .ratio.more {color: #b45309;}
.saved .line {display: grid; grid-template-columns: 76px 1fr 74px; align-items: center; gap: 8px; font-size: 12px;
  margin: 3px 0; font-variant-numeric: tabular-nums;}
.saved .line span:last-child {text-align: right;}
.saved .track {height: 13px; border-radius: 3px; background: rgba(127, 127, 127, .14); overflow: hidden;}
.saved .bar {height: 100%; border-radius: 3px; background: #94a3b8;}
.saved .bar.pruned {background: #22a35a;}
.dark .saved .ratio {color: #4ade80;}
.dark .saved .ratio.more {color: #fbbf24;}
"""
_NOTE = (
    "One reading each, after one that warms up. Times vary with what else the machine does; tokens and bytes do not."
)


def _card(body: str, note: str) -> str:
    return f'<h3>What it saves</h3><div class="card">{body}<p class="note">{note}</p></div>'


WAITING = _card("", "Ask a question, or choose a scene first: times, tokens and bytes of both answers appear here.")


def bars(stock: Side, pruned: Side) -> str:
    """Times and bytes of two finished sides."""
    first, second = stock.answer, pruned.answer
    if first is None or second is None:
        return WAITING
    one, two = first.prefill, second.prefill
    rows = [
        ("Visual tokens, layer average", first.kept_tokens, second.kept_tokens, ""),
        ("Time to first token", one.first_token_ms, two.first_token_ms, "ms"),
        ("LLM prefill", one.prefill.ms, two.prefill.ms, "ms"),
        ("Decoding, per token", _per_token(stock, first), _per_token(pruned, second), "ms"),
        ("KV cache after prefill", one.kv_bytes / 1000, two.kv_bytes / 1000, "kB"),
        ("Of it all, choosing tokens", _choosing_ms(one), _choosing_ms(two), "ms"),
    ]
    return _card(f'<div class="saved">{"".join(_pair(pruned.name, *row) for row in rows)}</div>', _NOTE)


def _choosing_ms(trace: PrefillTrace) -> float:
    """What pruning itself costs: reading the tower and choosing."""
    return trace.selecting.ms + trace.tapping.ms


def _per_token(side: Side, answer: Answer) -> float:
    """Milliseconds of each token after the first; 0 where there is only one."""
    return side.decode_ms / (len(answer.tokens) - 1) if len(answer.tokens) > 1 else 0.0


def _pair(name: str, title: str, stock: float, pruned: float, unit: str) -> str:
    most = max(stock, pruned) or 1.0
    lines = [_line("unpruned", stock, most, unit, ""), _line(name, pruned, most, unit, " pruned")]
    return f"<section><h4><span>{title}</span>{_ratio(stock, pruned)}</h4>{''.join(lines)}</section>"


def _line(name: str, value: float, most: float, unit: str, kind: str) -> str:
    shown = f"{value:,.{int(value < 1000)}f} {unit}".strip() if value else "-"
    bar = f'<div class="track"><div class="bar{kind}" style="width:{100 * value / most:.1f}%"></div></div>'
    return f'<div class="line"><span>{escape(name)}</span>{bar}<span>{shown}</span></div>'


def _ratio(stock: float, pruned: float) -> str:
    """How many times less, or more; nothing within a tenth, which one reading cannot tell."""
    if not stock or not pruned or 1 / 1.1 < stock / pruned < 1.1:
        return ""
    if stock > pruned:
        return f'<span class="ratio">{stock / pruned:.1f}x less</span>'
    return f'<span class="ratio more">{pruned / stock:.1f}x more</span>'
