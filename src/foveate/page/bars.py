"""What pruning saves as bars: plain HTML, because two bars of one number need no library."""

from __future__ import annotations

from html import escape

from foveate.inference.answer import Answer
from foveate.page.comparing import Side

CSS = """
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
.waiting {opacity: .65; font-size: 13px; padding: 8px 2px;}
@media (prefers-color-scheme: dark) {.saved .ratio {color: #4ade80;} .saved .ratio.more {color: #fbbf24;}}
"""
WAITING = '<div class="waiting">Ask a question: what pruning saves appears here.</div>'


def bars(stock: Side, pruned: Side) -> str:
    """Times and bytes of two finished sides."""
    first, second = stock.answer, pruned.answer
    if first is None or second is None:
        return WAITING
    rows = [
        ("Time to first token", first.prefill.first_token_ms, second.prefill.first_token_ms, "ms"),
        ("of it: LLM prefill", first.prefill.prefill.ms, second.prefill.prefill.ms, "ms"),
        ("Decoding, per token", _per_token(stock, first), _per_token(pruned, second), "ms"),
        ("KV cache after prefill", first.prefill.kv_bytes / 1000, second.prefill.kv_bytes / 1000, "kB"),
        ("Visual tokens, layer average", first.kept_tokens, second.kept_tokens, ""),
    ]
    return f'<div class="saved">{"".join(_pair(pruned.name, *row) for row in rows)}</div>'


def _per_token(side: Side, answer: Answer) -> float:
    """Milliseconds of each token after the first; 0 where there is only one."""
    return side.decode_ms / (len(answer.tokens) - 1) if len(answer.tokens) > 1 else 0.0


def _pair(name: str, title: str, stock: float, pruned: float, unit: str) -> str:
    most = max(stock, pruned) or 1.0
    lines = [_line("unpruned", stock, most, unit, ""), _line(name, pruned, most, unit, " pruned")]
    return f"<section><h4><span>{title}</span>{_ratio(stock, pruned)}</h4>{''.join(lines)}</section>"


def _line(name: str, value: float, most: float, unit: str, kind: str) -> str:
    shown = f"{value:,.1f} {unit}".strip() if value < 1000 else f"{value:,.0f} {unit}".strip()
    bar = f'<div class="track"><div class="bar{kind}" style="width:{100 * value / most:.1f}%"></div></div>'
    return f'<div class="line"><span>{escape(name)}</span>{bar}<span>{shown}</span></div>'


def _ratio(stock: float, pruned: float) -> str:
    """How many times less, or more; nothing within a tenth, which one reading cannot tell."""
    if not stock or not pruned or 1 / 1.1 < stock / pruned < 1.1:
        return ""
    if stock > pruned:
        return f'<span class="ratio">{stock / pruned:.1f}x less</span>'
    return f'<span class="ratio more">{pruned / stock:.1f}x more</span>'
