"""What pruning saves as bars: plain HTML, because two bars of one number need no library."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from statistics import median

from foveate.inference.answer import Answer
from foveate.page.comparing import READINGS, Side
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
    f"Times of the prompt: medians of {READINGS} readings in turns; a ratio stands where all readings of one lie below "
    "all of the other. Decoding is timed once, with the answer."
)


def _card(body: str, note: str) -> str:
    return f'<h3>What it saves</h3><div class="card">{body}<p class="note">{note}</p></div>'


WAITING = _card("", "Ask a question, or choose a scene first: times, tokens and bytes of both answers appear here.")


def bars(stock: Side, pruned: Side) -> str:
    """Times and bytes of two finished sides."""
    first, second = stock.answer, pruned.answer
    if first is None or second is None or not stock.readings or not pruned.readings:
        return WAITING

    def times(what: Callable[[PrefillTrace], float]) -> tuple[list[float], list[float]]:
        return [what(one) for one in stock.readings], [what(one) for one in pruned.readings]

    rows = [
        ("Visual tokens, layer average", ([first.kept_tokens], [second.kept_tokens]), "", True),
        ("Time to first token", times(lambda one: one.first_token_ms), "ms", True),
        ("LLM prefill", times(lambda one: one.prefill.ms), "ms", True),
        ("Decoding, per token", ([_per_token(stock, first)], [_per_token(pruned, second)]), "ms", False),
        ("KV cache after prefill", ([first.prefill.kv_bytes / 1000], [second.prefill.kv_bytes / 1000]), "kB", True),
        ("Of it all, choosing tokens", times(_choosing_ms), "ms", False),
    ]
    shown = (_pair(pruned.name, title, *values, unit, compared) for title, values, unit, compared in rows)
    return _card(f'<div class="saved">{"".join(shown)}</div>', _NOTE)


def _choosing_ms(trace: PrefillTrace) -> float:
    """What pruning itself costs: reading the tower and choosing."""
    return trace.selecting.ms + trace.tapping.ms


def _per_token(side: Side, answer: Answer) -> float:
    """Milliseconds of each token after the first; 0 where there is only one."""
    return side.decode_ms / (len(answer.tokens) - 1) if len(answer.tokens) > 1 else 0.0


def _pair(name: str, title: str, stock: list[float], pruned: list[float], unit: str, compared: bool) -> str:
    usual = median(stock), median(pruned)
    most = max(usual) or 1.0
    lines = [_line("unpruned", usual[0], most, unit, ""), _line(name, usual[1], most, unit, " pruned")]
    ratio = _ratio(stock, pruned) if compared else ""
    return f"<section><h4><span>{title}</span>{ratio}</h4>{''.join(lines)}</section>"


def _line(name: str, value: float, most: float, unit: str, kind: str) -> str:
    shown = f"{value:,.{int(value < 1000)}f} {unit}".strip() if value else "-"
    bar = f'<div class="track"><div class="bar{kind}" style="width:{100 * value / most:.1f}%"></div></div>'
    return f'<div class="line"><span>{escape(name)}</span>{bar}<span>{shown}</span></div>'


def _ratio(stock: list[float], pruned: list[float]) -> str:
    """How many times less, or more; nothing where the readings overlap."""
    if min(stock) > max(pruned) > 0:
        return f'<span class="ratio">{median(stock) / median(pruned):.1f}x less</span>'
    if min(pruned) > max(stock) > 0:
        return f'<span class="ratio more">{median(pruned) / median(stock):.1f}x more</span>'
    return ""
