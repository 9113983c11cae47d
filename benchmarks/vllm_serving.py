"""vLLM with the plugin against vLLM without it: requests a second, time to first token, blocks of KV.

    OMP_NUM_THREADS=1 PYTHONPATH=tests/vllm/site .venv-vllm/bin/python benchmarks/vllm_serving.py mid-llava

`make .venv-vllm/.done` makes that environment. A model is a preset with random weights (speed needs no others); `/4`
behind its name is a quarter of its depth, tower and language model alike, so that its shares are those of the whole.
Two engines live in one process, vLLM's own and one with the plugin, whose requests name their keep (1: what the plugin
itself costs). In every round each of the settings answers as many requests at once, every one with another picture and
question, in an order that changes; nothing is found in a cache (every round has pictures of its own). Answers are
greedy and of a fixed length.

    req/s    requests over the time from the first one's arrival to the last answer; processing of pictures counts
    ratio    of req/s over vLLM's own in the same round: mean and standard error over rounds
    CPU      the same of requests per second of CPU time, which other work on the machine disturbs less
    TTFT     from a request's arrival to its first token, p50; all arrive at once, so waiting counts
    blocks   of the KV cache that one request fills
    tower    share of the CPU time that encoding takes (tower, projector, selection); llm: that of the language model's
             forward passes
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine's parts are timed where they run
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
}

import vllm
from PIL import Image
from transformers import AutoProcessor

from foveate import zoo
from foveate.families.presets import PRESETS, configuration
from foveate.files.environment import facts
from foveate.plugins.vllm.settings import KEEP
from foveate.scenes import load

BLOCK = 32
ZOO = {"llava": "scenes-llava", "qwen2_5_vl": "scenes-qwen2_5_vl"}
"""Whose tokenizer and processor a preset's checkpoint gets."""


def write(name: str, tokens: int | None, folder: Path) -> int:
    """A checkpoint without weights; the side of its pictures in pixels."""
    name, _, part = name.partition("/")
    preset, processor = PRESETS[name], AutoProcessor.from_pretrained(zoo.path(ZOO[PRESETS[name].family]))
    tokens = tokens or preset.tokens
    config = configuration(_shallow(preset, int(part or 1)), tokens)
    tokenizer, images = processor.tokenizer, processor.image_processor
    config.image_token_id = tokenizer.convert_tokens_to_ids(processor.image_token)
    config.image_token_index = config.image_token_id
    side = math.isqrt(tokens) * 14
    if preset.family == "llava":
        images.size = images.crop_size = {"height": side, "width": side}
    else:
        side *= 2
        for token, place in (("<|vision_start|>", "vision_start_token_id"), ("<|vision_end|>", "vision_end_token_id")):
            setattr(config, place, tokenizer.convert_tokens_to_ids(token))
        images.size = {"shortest_edge": side * side, "longest_edge": side * side}
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "config.json"
    own = {"image_token_index": config.image_token_id, "architectures": [_architecture(config)]}
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    return side


def _shallow(preset: Any, part: int) -> Any:
    """One in so many of the layers."""
    if part == 1:
        return preset
    text, vision = dict(preset.text), dict(preset.vision)
    text["num_hidden_layers"] //= part
    if preset.family == "llava":  # which never runs the last layer of its tower
        vision["num_hidden_layers"] = 1 + math.ceil((vision["num_hidden_layers"] - 1) / part)
    else:
        vision["depth"] //= part
        full = vision["fullatt_block_indexes"]
        vision["fullatt_block_indexes"] = full[: len(full) // part]
    return replace(preset, text=text, vision=vision)


def _architecture(config: Any) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return str(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[config.model_type])


@dataclass
class Clock:
    """Seconds of CPU time spent in an engine's parts since they were last asked for."""

    tower: float = 0.0
    llm: float = 0.0

    def listen(self, model: Any) -> None:
        model.embed_multimodal = self._timed("tower", model.embed_multimodal)
        model.forward = self._timed("llm", model.forward)

    def _timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.process_time()
            found = call(*args, **kwargs)
            setattr(self, part, getattr(self, part) + time.process_time() - begin)
            return found

        return timed

    def read(self) -> tuple[float, float]:
        found, self.tower, self.llm = (self.tower, self.llm), 0.0, 0.0
        return found


@dataclass
class Engine:
    """A running vLLM engine, with its clock."""

    llm: Any
    clock: Clock

    @classmethod
    def start(cls, folder: Path, settings: dict[str, Any] | None, given: argparse.Namespace) -> Engine:
        llm = vllm.LLM(
            str(folder), load_format="dummy", dtype=given.dtype, enforce_eager=True, max_model_len=given.length,
            max_num_seqs=given.rows, max_num_batched_tokens=given.length, block_size=BLOCK, seed=given.seed,
            enable_prefix_caching=False, mm_processor_cache_gb=0, limit_mm_per_prompt={"image": 1},
            hf_overrides={} if settings is None else {"foveate": settings}, disable_log_stats=False,
            kv_cache_memory_bytes=given.kv << 20,
        )  # fmt: skip
        clock = Clock()
        llm.apply_model(clock.listen)
        return cls(llm, clock)


@dataclass(frozen=True)
class Row:
    """One setting in one round.

    Attributes:
        keep: None: vLLM's own engine.
        cpu: CPU time; tower and llm are of it.
    """

    keep: float | None
    seconds: float
    cpu: float
    per_second: float
    ttft: float
    prompt: int
    blocks: int
    tower: float
    llm: float


def requests(count: int, side: int, mark: int, prompt: str) -> list[dict[str, Any]]:
    """Pictures of scenes with their questions, which no other mark has."""
    found = []
    for sample in load("test")[:count]:
        image = sample.image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
        image.putpixel((0, 0), (mark % 256, mark // 256, 0))
        found.append({"prompt": prompt.format(sample.question), "multi_modal_data": {"image": image}})
    return found


def measure(engine: Engine, keep: float | None, asked: Sequence[dict[str, Any]], tokens: int) -> Row:
    """All requests at once."""
    if keep is not None:
        asked = [one | {"mm_processor_kwargs": {KEEP: keep}} for one in asked]
    sampling = vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    engine.clock.read()
    begin, worked = time.perf_counter(), time.process_time()
    found = engine.llm.generate(asked, sampling, use_tqdm=False)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - worked
    tower, llm = engine.clock.read()
    assert all(len(one.outputs[0].token_ids) == tokens and not one.num_cached_tokens for one in found)
    prompt = max(len(one.prompt_token_ids) for one in found)
    ttft = statistics.median(one.metrics.first_token_latency for one in found)
    blocks = math.ceil((prompt + tokens) / BLOCK)
    return Row(keep, seconds, cpu, len(found) / seconds, ttft, prompt, blocks, tower, llm)


def rounds(engines: dict[bool, Engine], side: int, prompt: str, given: argparse.Namespace) -> list[list[Row]]:
    """Rows of every round, vLLM's own first; a round before the first is not counted."""
    keeps: list[float | None] = [None, *given.keep]
    source, mark, found = random.Random(given.seed), 0, []
    for number in range(given.rounds + 1):
        rows, order = {}, list(range(len(keeps)))
        source.shuffle(order)
        for place in order:
            mark, keep = mark + 1, keeps[place]
            asked = requests(given.requests if number else 1, side, mark, prompt)
            rows[place] = measure(engines[keep is not None], keep, asked, given.tokens)
            gc.collect()
        if number:
            found.append([rows[place] for place in sorted(rows)])
    return found


HEAD = "| keep | prompt | blocks | req/s | ratio | CPU | TTFT p50 | TTFT / | tower | llm |"


def summary(rows: Sequence[Row], without: Sequence[Row]) -> dict[str, Any]:
    """Means over rounds, ratios with standard errors.

    Args:
        rows, without: of one setting and of vLLM's own, in the same rounds.
    """
    pairs = list(zip(without, rows, strict=True))
    ratios = {
        "ratio": [own.seconds / row.seconds for own, row in pairs],
        "cpu_ratio": [own.cpu / row.cpu for own, row in pairs],
        "ttft_ratio": [own.ttft / row.ttft for own, row in pairs],
    }
    cpu = sum(row.cpu for row in rows)
    found: dict[str, Any] = {
        "keep": rows[0].keep, "prompt_tokens": rows[0].prompt, "blocks": rows[0].blocks,
        "requests_per_second": statistics.mean(row.per_second for row in rows),
        "ttft_p50": statistics.mean(row.ttft for row in rows),
        "tower": sum(row.tower for row in rows) / cpu, "llm": sum(row.llm for row in rows) / cpu,
    }  # fmt: skip
    for name, values in ratios.items():
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        found |= {name: statistics.mean(values), f"{name}_error": error}
    return found


def line(found: dict[str, Any]) -> str:
    """Of the table."""
    keep = "without" if found["keep"] is None else f"{found['keep']:.3g}"
    ratio, cpu, ttft = (
        f"{found[name]:.2f} ± {found[f'{name}_error']:.2f}" for name in ("ratio", "cpu_ratio", "ttft_ratio")
    )
    return (
        f"| {keep} | {found['prompt_tokens']} | {found['blocks']} | {found['requests_per_second']:.3f} | {ratio} "
        f"| {cpu} | {found['ttft_p50']:.2f} s | {ttft} | {found['tower']:.0%} | {found['llm']:.0%} |"
    )


def study(given: argparse.Namespace) -> dict[str, Any]:
    """One model under all settings."""
    with tempfile.TemporaryDirectory() as name:
        side = write(given.model, given.visual, Path(name))
        image = "<|image_pad|>" if given.model.count("llava") else "<|vision_start|><|image_pad|><|vision_end|>"
        settings = {"method": given.method, "keep": min(given.keep)}
        engines = {on: Engine.start(Path(name), settings if on else None, given) for on in (False, True)}
        found = rounds(engines, side, image + "{} Answer: ", given)
        environment: dict[str, Any] = engines[False].llm.apply_model(facts)[0]
    lines = [summary(rows, [own[0] for own in found]) for rows in zip(*found, strict=True)]
    print(HEAD, "|---" * HEAD.count(" |") + "|", *map(line, lines), sep="\n")
    return {
        "model": given.model, "command": " ".join(["python", *sys.argv]).partition(" --json")[0],
        "vllm": vllm.__version__, "environment": environment, "settings": lines,
        "rounds": [[asdict(row) for row in rows] for rows in found],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a preset of LLaVA-1.5 or Qwen2.5-VL")
    parser.add_argument("--visual", type=int, help="visual tokens of a picture; the preset's own without it")
    parser.add_argument("--method", default="visionzip")
    parser.add_argument("--keep", type=float, nargs="+", default=[1.0, 1 / 3, 1 / 9])
    parser.add_argument("--requests", type=int, default=24, help="in a round, for every setting")
    parser.add_argument("--rows", type=int, default=12, help="requests that an engine works on together")
    parser.add_argument("--tokens", type=int, default=16, help="of an answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--length", type=int, default=4096, help="of a prompt, and tokens of a step, at most")
    parser.add_argument("--kv", type=int, default=1024, help="MiB for the KV cache of an engine")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = study(given)
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
