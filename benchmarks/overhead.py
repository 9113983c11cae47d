"""What the engine itself costs, and how much of the ideal speed-up ViTCoP reaches.

    python benchmarks/overhead.py                       # two mid-size random models, CPU, a few minutes
    python benchmarks/overhead.py --models qwen2.5-vl-7b --tokens 5000 --dtype bfloat16 --device cuda

All configurations of one model run interleaved in one process; ratios are medians over repeats of ratios within
one repeat, so that a busy machine disturbs them little. KV bytes must be exact, otherwise the run fails.

    keep=1/stock  a method that keeps everything over no foveate at all, images included
    achieved      prefill speed-up over the analytic FLOPs ratio (ideal)
    of stock      what stock layers take for as many tokens per layer, over the pruned prefill: 1.00 would mean that
                  selecting, packing and hooks cost nothing; what is missing from `achieved` beyond that is that
                  short sequences use the hardware less well
    selecting     share of the pruned prefill
    reading       share of the vision tower's time
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import foveate
from foveate.bench.flops import count
from foveate.families import adapt
from foveate.families.geometry import Geometry
from foveate.families.presets import build
from foveate.families.prompts import random_prompt
from foveate.files.environment import facts
from foveate.methods import Random, ViTCoP
from foveate.trace.records import PrefillTrace


def forward_seconds(model: Any, inputs: dict[str, Any]) -> float:
    """One prefill, images included, by the clock."""
    synchronise(model)
    start = time.perf_counter()
    model(**inputs, use_cache=True, logits_to_keep=1)
    synchronise(model)
    return time.perf_counter() - start


def synchronise(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def traced(model: Any, inputs: dict[str, Any], method: Any) -> tuple[float, PrefillTrace]:
    with foveate.prune(model, method) as trace:
        seconds = forward_seconds(model, inputs)
    return seconds, trace.last


def stock_milliseconds(model: Any, counts: list[int], repeats: int) -> float:
    """What stock layers take for as many tokens as each layer had: text prompts of these lengths, no foveate."""
    took: list[float] = []
    started = [0.0]
    text = model.model.language_model

    def begin(*_: Any) -> None:
        synchronise(model)
        started[0] = time.perf_counter()

    def end(*_: Any) -> None:
        synchronise(model)
        took.append(time.perf_counter() - started[0])

    handles = [text.register_forward_pre_hook(begin), text.register_forward_hook(end)]
    per_layer = {}
    for length in set(counts):
        ids = torch.full((1, length), 20, device=model.device)
        for _ in range(repeats + 1):
            forward_seconds(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        per_layer[length] = statistics.median(took[1:]) * 1000 / len(counts)
        took.clear()
    for handle in handles:
        handle.remove()
    return sum(per_layer[length] for length in counts)


def expected_kv_bytes(model: Any, trace: PrefillTrace) -> int:
    """Keys and values of exactly the tokens that each layer kept."""
    config = model.config.get_text_config()
    per_token = 2 * config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    text = trace.length * trace.rows - trace.visual_tokens
    tokens = sum(text + alive for alive in trace.alive_per_layer())
    return tokens * per_token * next(model.parameters()).element_size()


def measure(name: str, tokens: int, dtype: torch.dtype, device: str, repeats: int) -> dict[str, Any]:
    model = build(name, tokens, dtype, device)
    inputs = random_prompt(model, tokens)
    names = ("keep_all", "speed_up", "selecting", "reading", "pruned_ms")
    ratios: dict[str, list[float]] = {name: [] for name in names}
    with torch.inference_mode():
        for repeat in range(repeats + 1):
            stock = forward_seconds(model, inputs)
            same, _ = traced(model, inputs, Random(keep=1.0))
            _, unpruned = traced(model, inputs, None)
            _, pruned = traced(model, inputs, ViTCoP(keep=1 / 9))
            if repeat == 0:
                continue  # warm-up
            ratios["keep_all"].append(same / stock)
            ratios["speed_up"].append(unpruned.prefill.ms / pruned.prefill.ms)
            ratios["selecting"].append(pruned.selecting.ms / pruned.prefill.ms)
            ratios["pruned_ms"].append(pruned.prefill.ms)
            ratios["reading"].append(pruned.tapping.ms / pruned.vision.ms)
        counts = [pruned.length - pruned.visual_tokens + alive for alive in pruned.alive_per_layer()]
        stock_ms = stock_milliseconds(model, counts, repeats)
    if pruned.kv_bytes != expected_kv_bytes(model, pruned):
        raise SystemExit(f"KV bytes {pruned.kv_bytes} differ from the expected {expected_kv_bytes(model, pruned)}")
    geometry = Geometry.of(adapt(model))
    ideal = count(geometry, unpruned, 1, 0).prefill / count(geometry, pruned, 1, 0).prefill
    speed_up = statistics.median(ratios["speed_up"])
    return {
        "model": name,
        "visual_tokens": tokens,
        "keep_all_over_stock": statistics.median(ratios["keep_all"]),
        "prefill_speed_up": speed_up,
        "prefill_flops_ratio": ideal,
        "achieved_over_ideal": speed_up / ideal,
        "stock_layers_on_as_many_tokens_over_pruned": stock_ms / statistics.median(ratios["pruned_ms"]),
        "selecting_share_of_pruned_prefill": statistics.median(ratios["selecting"]),
        "selecting_share_of_unpruned_prefill": statistics.median(
            s / u for s, u in zip(ratios["selecting"], ratios["speed_up"], strict=True)
        ),
        "reading_share_of_vision_tower": statistics.median(ratios["reading"]),
        "average_visual_tokens": statistics.mean(pruned.alive_per_layer()),
        "kv_bytes": pruned.kv_bytes,
        "kv_bytes_unpruned": pruned.kv_bytes_unpruned,
        "kv_bytes_exact": True,
        "repeats": ratios,
        "facts": facts(model),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["mid-qwen2.5-vl", "mid-llava"])
    parser.add_argument("--tokens", nargs="*", type=int, default=[576, 2304])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    columns = ("keep=1/stock", "speed-up", "ideal", "achieved", "of stock", "selecting", "reading")
    print(f"{'model':16} {'tokens':>6} " + " ".join(f"{name:>12}" for name in columns))
    for name in options.models:
        for tokens in options.tokens:
            found = measure(name, tokens, getattr(torch, options.dtype), options.device, options.repeats)
            rows.append(found)
            numbers = (
                f"{found['keep_all_over_stock']:.3f}",
                f"{found['prefill_speed_up']:.2f}x",
                f"{found['prefill_flops_ratio']:.2f}x",
                f"{found['achieved_over_ideal']:.2f}",
                f"{found['stock_layers_on_as_many_tokens_over_pruned']:.2f}",
                f"{found['selecting_share_of_pruned_prefill']:.1%}",
                f"{found['reading_share_of_vision_tower']:.1%}",
            )
            share = found["kv_bytes"] / found["kv_bytes_unpruned"]
            line = " ".join(f"{number:>12}" for number in numbers)
            print(f"{name:16} {tokens:6d} {line}   KV {share:.1%} of unpruned, exact", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
