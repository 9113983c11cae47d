"""What share of a prefill max-min diversity takes on a model of published shape, without its weights.

    python benchmarks/max_min.py --model qwen2.5-vl-7b --tokens 2304 --json runs/max_min.json
    python benchmarks/max_min.py --model mid-llava --tokens 16384 --method divprune

One decoder layer with random weights is timed at the numbers of tokens that `vitcop_diverse` leaves after each stage,
and multiplied by how many layers run at each: the prefill after the vision tower, as in docs/methods_speed.md. The
choices are timed on what `mid-llava` with random weights gives them to choose from, turned into the model's width by a
fixed rotation, which leaves all cosines as they are. The `mid` models run as they are, and all of a method's selecting
counts. Processor time of one thread, in float32: other work on the machine hardly changes it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import foveate
from foveate.core.view import ModelInfo
from foveate.families.presets import PRESETS, build
from foveate.families.prompts import TEXT_TOKENS, random_prompt
from foveate.files.atomic import write_text
from foveate.files.environment import facts
from foveate.maths.diversity import max_min
from foveate.methods import registry, vitcop
from foveate.methods.vitcop_diverse import ViTCoPDiverse

Call = tuple[Tensor, int, Tensor]
"""What `max_min` was asked."""


def seconds(repeats: int, call: Callable[..., object], *values: Any, **named: Any) -> float:
    """Median processor time of a call, after one that does not count if there are several."""
    found = []
    for _ in range(repeats + 1):
        start = time.process_time()
        call(*values, **named)
        found.append(time.process_time() - start)
    return statistics.median(found[1:] or found)


def choices(tokens: int, keep: float) -> list[Call]:
    """What the stages of the method are given on the mid-size stand-in: features, how many to choose, start."""
    calls: list[Call] = []

    def spy(x: Tensor, count: int, start: Tensor, rough: bool) -> Tensor:
        calls.append((x.clone(), count, start))
        return max_min(x, count, start, rough=rough)

    model = build("mid-llava", tokens)
    with (
        mock.patch.object(vitcop, "max_min", spy),
        foveate.prune(model, ViTCoPDiverse(keep=keep)),
        torch.inference_mode(),
    ):
        model(**random_prompt(model, tokens), use_cache=True, logits_to_keep=1)
    return calls


def widened(call: Call, rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Features of the same cosines at another width, and the start. A model of another depth leaves other numbers of
    tokens: as many of the rows as it does; where they are too few, the first ones again, with noise."""
    x, _, start = call
    generator = torch.Generator().manual_seed(0)
    more = x[: max(0, rows - len(x))]
    x = torch.cat([x[:rows], more + 0.3 * x.std() * torch.randn(more.shape, generator=generator)])
    noise = torch.randn(width, x.shape[1], generator=generator)
    return x.float() @ torch.linalg.qr(noise)[0].T, start.clamp(max=rows - 1).unique()


def layer(name: str) -> Any:
    """A text model of the preset's shape with one layer and next to no words."""
    from transformers.models.qwen2_5_vl import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel

    text = {key: value for key, value in PRESETS[name].text.items() if key != "model_type"}
    torch.manual_seed(0)
    return Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**{**text, "num_hidden_layers": 1, "vocab_size": 32})).eval()


def phases(name: str, method: ViTCoPDiverse, tokens: int) -> Iterator[tuple[int, int]]:
    """How many visual tokens, and in how many layers."""
    depth = PRESETS[name].text["num_hidden_layers"]
    info = ModelInfo(PRESETS[name].family, depth, PRESETS[name].vision["depth"], False)
    edges = (0, *method.layers(info), depth)
    yield from zip(method.counts(info, tokens), (b - a for a, b in pairwise(edges)), strict=True)


def share(name: str, tokens: int, keep: float, repeats: int) -> dict[str, Any]:
    """Times of all parts, in seconds."""
    width, method = PRESETS[name].text["hidden_size"], ViTCoPDiverse(keep=keep)
    counts = list(phases(name, method, tokens))
    times, parts, prefill, alive = [], [], 0.0, tokens
    for call, (count, _) in zip(choices(tokens, keep), counts, strict=True):
        x, start = widened(call, alive, width)
        times.append(seconds(repeats, max_min, x, count, start, rough=True))  # so wide that it is exact
        alive = count
    model = layer(name)
    for count, layers in counts:
        states = torch.randn(1, count + TEXT_TOKENS, width)
        with torch.inference_mode():
            one = seconds(repeats if tokens < 10**4 else 0, model, inputs_embeds=states, use_cache=True)
        parts.append({"tokens": count, "layers": layers, "one_layer_s": one})
        prefill += layers * one
    total = sum(times)
    return {
        "model": name, "visual_tokens": tokens, "keep": keep, "layers": parts, "layers_s": prefill,
        "max_min_s": times, "share": total / (total + prefill), "facts": facts(model),
    }  # fmt: skip


def whole(name: str, tokens: int, method: str, keep: float, repeats: int) -> dict[str, Any]:
    """Selecting and prefill of a model that runs in full, medians in milliseconds; one run if there are no repeats."""
    model, found = build(name, tokens), []
    inputs = random_prompt(model, tokens)
    with mock.patch("time.perf_counter", time.process_time):
        for _ in range(repeats + 1):
            with foveate.prune(model, registry()[method](keep=keep)) as trace, torch.inference_mode():
                model(**inputs, use_cache=True, logits_to_keep=1)
            found.append((trace.last.selecting.ms, trace.last.prefill.ms))
    select, prefill = (statistics.median(times) for times in zip(*(found[1:] or found), strict=True))
    return {
        "model": name, "visual_tokens": tokens, "keep": keep, "method": method, "select_ms": select,
        "prefill_ms": prefill, "share": select / prefill, "facts": facts(model),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", choices=["mid-llava", "mid-qwen2.5-vl", "qwen2.5-vl-3b", "qwen2.5-vl-7b"], default="qwen2.5-vl-7b"
    )
    parser.add_argument("--tokens", type=int, default=2304)
    parser.add_argument("--method", default="vitcop_diverse", help="of a mid model")
    parser.add_argument("--keep", type=float, default=1 / 9)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.model.startswith("mid"):
        found = whole(options.model, options.tokens, options.method, options.keep, options.repeats)
    else:
        found = share(options.model, options.tokens, options.keep, options.repeats)
    print(json.dumps(found, indent=1))
    if options.json:
        rows = json.loads(options.json.read_text()) if options.json.is_file() else []
        write_text(options.json, json.dumps([*rows, found], indent=1))


if __name__ == "__main__":
    main()
