"""What the engine itself costs, and how much of the ideal speed-up ViTCoP reaches.

    python benchmarks/overhead.py                       # two mid-size random models, CPU, a few minutes
    python benchmarks/overhead.py --models qwen2.5-vl-7b --tokens 5000 --dtype bfloat16 --device cuda

All configurations of one model run interleaved in one process; ratios are medians over repeats of ratios within
one repeat, so that a busy machine disturbs them little. KV bytes must be exact, otherwise the run fails.
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
from foveate.bench.environment import facts
from foveate.bench.flops import count
from foveate.bench.geometry import Geometry
from foveate.bench.presets import build
from foveate.bench.prompts import random_prompt
from foveate.core.trace import PrefillTrace
from foveate.methods import Random, ViTCoP


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
    ratios: dict[str, list[float]] = {"keep_all": [], "speed_up": [], "selecting": [], "reading": []}
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
            ratios["reading"].append(pruned.tapping.ms / pruned.vision.ms)
    if pruned.kv_bytes != expected_kv_bytes(model, pruned):
        raise SystemExit(f"KV bytes {pruned.kv_bytes} differ from the expected {expected_kv_bytes(model, pruned)}")
    geometry = Geometry.of(model.config)
    ideal = count(geometry, unpruned, 1).prefill / count(geometry, pruned, 1).prefill
    speed_up = statistics.median(ratios["speed_up"])
    return {
        "model": name,
        "visual_tokens": tokens,
        "keep_all_over_stock": statistics.median(ratios["keep_all"]),
        "prefill_speed_up": speed_up,
        "prefill_flops_ratio": ideal,
        "achieved_over_ideal": speed_up / ideal,
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
    columns = ("keep=1/stock", "speed-up", "ideal", "achieved", "selecting", "reading")
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
