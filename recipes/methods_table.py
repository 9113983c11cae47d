"""The methods as a page, from the registry and a study: `python -m recipes.methods_table > docs/methods.md`."""

from __future__ import annotations

import inspect
import json
from functools import cache
from pathlib import Path
from typing import Any

from foveate.core.method import Method
from foveate.core.view import ModelInfo
from foveate.errors import FoveateError
from foveate.evals.paired import difference
from foveate.methods import registry, takes_keep

LLAVA = ModelInfo("llava", 32, 24, True, 16, feeding=23)
"""LLaVA-1.5-7B, whose stage layers the table shows."""

SWITCHES = Path(__file__).parents[1] / "benchmarks" / "results" / "switches.json"

HEAD = """\
# Methods

`keep` is the average number of visual tokens per decoder layer over the unpruned number, alike for every method and
whatever its layers: one that prunes before the language model keeps that share, one that prunes inside it keeps fewer
later, to make up for the layers before its first stage, which read everything. It is a ratio (`1/9`), a number of
tokens (`64`; a whole number is never a ratio, so `1` is one token and `1.0` is everything) or a `Keep`, which adds a
floor, a cap, or a budget over all images of a prompt. A budget that a method cannot reach is refused with the reason.
At `keep=1.0` every method is the stock model, bit for bit; a test says so for every method, family and backend.

Every method keeps the position ids of the survivors. The code that papers published for LLaVA renumbers them 0, 1, ...
after pruning: all code that prunes before the language model, and FastV, SparseVLM 1.0 and PyramidDrop inside it. To
reproduce a paper's numbers give any method `positions="contiguous"`.

With `proportional=True` attention to a survivor grows with the number of tokens that it stands for: the log of it is
added to its logits behind the stage, as ToMe (arXiv 2210.09461) does for merged tokens. A model that counts by shares
of attention goes on counting ([vitcop.md](vitcop.md#proportional-attention)). It needs `sdpa` or `eager` attention.

Some methods prune the vision tower itself (seam *tower*): what they drop before one of its blocks goes through neither
the rest of the tower nor the language model. They can stand before others, with one budget (`ViTCoP(tower=...)`,
`Compose`); what that brings is in [ttft.md](ttft.md).

*Seam* gives the decoder layers before which a method acts on LLaVA-1.5-7B (32 layers) with default parameters; 0 is
before the language model. *Reads* is all that it needs: taps of the vision tower (`received` attention, `keys`,
`hidden` states), features of the visual tokens, the text, keys of the language model, attention rows of a few tokens.
`received` is the attention that a token receives: from the class token where the tower has one, else from the patches
of its image (in a block of windowed attention: of its window). All of them ask up to 1,024 patches, and 1,024 evenly
spaced ones beyond, to keep reading cheap beside the tower; a method's `queries` sets another number, None asks all.
What sampling costs is in [reading.md](reading.md).

*Verified* says with what an implementation was compared: *official code* means that the published functions ran
unchanged on random features, and what they chose are fixtures (`tests/golden/baselines`); where ours differs by
default, a field makes it the same. Everything else follows the paper, is tested against cases worked out by hand, and
is unverified. What small departures do: [under_run_baselines.md](under_run_baselines.md).

What such departures and each switch do to the answers of the built-in models stands below each method, from
[switches.md](switches.md): the paired difference of correct answers in points, changed minus default, with its standard
error. What is smaller than two of them was not told apart.

What selecting takes: [methods_speed.md](methods_speed.md). What is left of the answers on the built-in scenes:
[methods_accuracy.md](methods_accuracy.md).
"""


FOOT = "Written by `python -m recipes.methods_table > docs/methods.md`; a test keeps it up to date.\n"


def render() -> str:
    """The page as Markdown."""
    methods = registry()
    lines = [HEAD, "| method | seam | reads | number kept | verified | paper |", "|---|---|---|---|---|---|"]
    for name, kind in methods.items():
        cells = [f"[`{name}`](#{name})", seam(kind), reads(kind), number(kind), kind.verified or "no", paper(kind)]
        lines.append(f"| {' | '.join(cells)} |")
    for name, kind in methods.items():
        lines += ["", f"## {name}", "", f"`foveate.methods.{kind.__name__}({parameters(kind)})`", "", text(kind)]
        lines += effects(name)
    return "\n".join([*lines, "", FOOT])


def instance(kind: type[Method]) -> Method | None:
    """The method with its default parameters, or None if it needs something that has no default."""
    make: Any = getattr(kind, "example", None)
    try:
        return kind() if make is None else make(1 / 9, None)
    except (FoveateError, TypeError, AttributeError):
        return None


def seam(kind: type[Method]) -> str:
    method = instance(kind)
    if method is None:
        return "inside, as its module says"
    return ", ".join(str(stage.layer) for stage in method.stages(LLAVA)) if not method.tower_stages(LLAVA) else "tower"


def reads(kind: type[Method]) -> str:
    method = instance(kind)
    tower = [] if method is None else method.tower_stages(LLAVA)
    taps = [tap for stage in tower for tap in stage.taps] + ([] if method is None else list(method.taps(LLAVA)))
    found = ["pixels"] * any(stage.pixels for stage in tower) + list(dict.fromkeys(f"`{tap.kind}`" for tap in taps))
    declared = {stage.reads for stage in method.stages(LLAVA)} if method is not None else set()
    if "attention" in declared:
        found.append("attention rows")
    source = inspect.getsource(inspect.getmodule(kind) or kind)
    if "keys" in declared:
        found.append("keys of the language model")
    if "view.hidden" in source or "view.text" in source:
        found.append("features" + (" and text" if "view.text" in source else ""))
    if kind.probe is not Method.probe and "view.probe" in source:
        found += ["`hidden`", "probe token", "a trained module"]
    return ", ".join(found) or "nothing"


def number(kind: type[Method]) -> str:
    """Whether the number of tokens depends on the image."""
    if not kind.adaptive:
        return "fixed"
    return "fixed or adaptive" if takes_keep(kind) else "adaptive"


def paper(kind: type[Method]) -> str:
    number = kind.paper.removeprefix("arXiv ")
    return f"[{kind.paper}](https://arxiv.org/abs/{number})" if kind.paper.startswith("arXiv ") else kind.paper or "-"


def parameters(kind: type[Method]) -> str:
    shown = []
    for parameter in inspect.signature(kind).parameters.values():
        value, name = parameter.default, parameter.name
        if name in ("positions", "proportional"):  # every method has them; the head of the page says what they are
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            shown.append(f"*{name}")
        elif value is parameter.empty:
            shown.append(name)
        else:
            shown.append(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value!r}")
    return ", ".join(shown)


def text(kind: type[Method]) -> str:
    """The docstring, its argument list as a Markdown list."""
    body, _, rest = inspect.cleandoc(kind.__doc__ or "").partition("\nArgs:\n")
    listed = []
    for line in rest.partition("\nRaises:")[0].rstrip().splitlines():
        if line.startswith("    ") and not line.startswith("     "):
            name, _, meaning = line.strip().partition(": ")
            listed.append(f"- `{name}`: {meaning}")
        elif line.strip():
            listed[-1] += f" {line.strip()}"
    return "\n".join([body.strip(), "", *listed])


@cache
def studied() -> list[dict[str, Any]]:
    """What `benchmarks/accuracy.py --study switches` measured: a report per model."""
    reports: list[dict[str, Any]] = json.loads(SWITCHES.read_text(encoding="utf-8"))
    return reports


def effects(name: str) -> list[str]:
    """What each switch of a method, and each departure from its published code, does to the answers."""
    rows = []
    for report in studied():
        found = [row for row in report["settings"] if row["kind"] == name]
        defaults = {row["keep"]: row["scores"] for row in found if row["mode"] == "default"}
        model = report["run"]["model"].rpartition("/")[2]
        for row in found:
            if row["mode"] != "default":
                each = difference(row["scores"], defaults[row["keep"]])
                error = "?" if each.error is None else f"{100 * each.error:.1f}"
                cells = [row["mode"], model, row["keep"], str(report["n"]), f"{100 * each.mean:+.1f} ± {error}"]
                rows.append(f"| {' | '.join(cells)} |")
    return ["", "| changed | model | keep | n | difference |", "|---|---|---|---|---|", *sorted(rows)] if rows else []


if __name__ == "__main__":
    print(render(), end="")
