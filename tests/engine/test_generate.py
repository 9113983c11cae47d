"""`generate` and `forward` in all their forms, unmodified, under pruning."""

from __future__ import annotations

from contextvars import copy_context
from threading import Thread

import pytest
import torch
from transformers import GenerationConfig, TextIteratorStreamer
from transformers.generation import BaseStreamer

import foveate
from tests.reference import Drop, generate, masked_logits
from tests.tiny import Tiny, make_tiny

ROWS = [[3, (4, 4), 5], [2, (4, 6), 3, (2, 4), 4], [7]]


@pytest.mark.parametrize("method", [Drop((0, 3)), Drop((2,))], ids=str)
def test_beam_search(tiny: Tiny, method: Drop) -> None:
    """Beams reorder the cache: the score of the best beam is that of its tokens scored one by one."""
    inputs = tiny.batch(ROWS)
    with foveate.prune(tiny.model, method) as trace:
        out = tiny.model.generate(
            **inputs, max_new_tokens=4, num_beams=3, do_sample=False, output_scores=True,
            return_dict_in_generate=True, length_penalty=0.0,
        )  # fmt: skip
        seen = trace.to_dict()
    seen["rows"] = seen["rows"][::3]
    tokens = out.sequences[:, -4:]
    logits = masked_logits(tiny.model, inputs, seen, list(tokens.unbind(1)))
    scores = sum(x.log_softmax(-1).gather(1, tokens[:, i : i + 1])[:, 0] for i, x in enumerate(logits))
    assert torch.allclose(scores, out.sequences_scores, atol=1e-3)


def test_several_return_sequences_and_sampling(tiny: Tiny) -> None:
    inputs = tiny.batch(ROWS)
    with foveate.prune(tiny.model, Drop((0, 3))) as trace:
        torch.manual_seed(0)
        out = tiny.model.generate(**inputs, max_new_tokens=4, do_sample=True, num_return_sequences=2)
    assert out.shape[0] == 6
    rows = trace.to_dict()["rows"]
    assert [r["layers"] for r in rows[::2]] == [r["layers"] for r in rows[1::2]]


def test_no_cache_gives_the_same_tokens(tiny: Tiny) -> None:
    inputs = tiny.batch(ROWS)
    with foveate.prune(tiny.model, Drop((0, 3))):
        with_cache, logits = generate(tiny.model, inputs, 4)
        without, again = generate(tiny.model, inputs, 4, use_cache=False)
    assert torch.equal(with_cache, without)
    assert (logits - again).abs().max() < 1e-4


def test_keys_and_attention_do_not_need_a_cache(tiny: Tiny) -> None:
    """What methods read at a layer is the same from the cache and computed again."""
    from dataclasses import dataclass

    from foveate import Method, Stage, View

    seen: list[torch.Tensor] = []

    @dataclass(frozen=True)
    class Spy(Method):
        keep: None = None

        def stages(self, info):  # type: ignore[no-untyped-def]
            return [Stage(0), Stage(2, reads="attention")]

        def select(self, view: View) -> torch.Tensor:
            if view.layer == 2:
                seen.extend([view.keys.clone(), view.attention(), view.text])
            return torch.arange(0, len(view), 2)

    inputs = tiny.batch(ROWS)
    with foveate.prune(tiny.model, Spy()), torch.no_grad():
        tiny.model(**inputs, use_cache=True)
        tiny.model(**inputs, use_cache=False)
    half = len(seen) // 2
    for a, b in zip(seen[:half], seen[half:], strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_attention_rows_are_those_of_the_model() -> None:
    from dataclasses import dataclass

    from foveate import Method, Stage, View

    for family in ("llava", "qwen2_5_vl"):
        tiny = make_tiny(family, "eager")
        seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []

        @dataclass(frozen=True)
        class Spy(Method):
            keep: None = None

            def stages(self, info):  # type: ignore[no-untyped-def]
                return [Stage(3, reads="attention")]

            def select(self, view: View, seen: list = seen) -> torch.Tensor:
                seen.append((view.row, view.source.place, view.attention()))  # type: ignore[attr-defined]
                return torch.arange(len(view))

        inputs = tiny.batch(ROWS)
        with foveate.prune(tiny.model, Spy()), torch.no_grad():
            out = tiny.model(**inputs, output_attentions=True)
        for row, place, attention in seen:
            stock = out.attentions[2][row, :, -1:, :][..., place]
            assert torch.allclose(attention, stock, atol=1e-5)


class Collect(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None: ...


def test_streaming_from_a_worker_thread(tiny: Tiny) -> None:
    inputs = tiny.batch([ROWS[1]])
    streamer = Collect()
    with foveate.prune(tiny.model, Drop((0, 3))) as trace:
        expected, _ = generate(tiny.model, inputs, 4)
        worker = Thread(
            target=copy_context().run,
            args=(tiny.model.generate,),
            kwargs={**inputs, "max_new_tokens": 4, "do_sample": False, "streamer": streamer},
        )
        worker.start()
        worker.join()
    assert streamer.tokens[-4:] == expected[0].tolist()
    assert len(trace.prefills) == 2
    assert issubclass(TextIteratorStreamer, BaseStreamer)


def test_plain_forward_returns_the_kept_positions(tiny: Tiny) -> None:
    inputs = tiny.batch([ROWS[0]])
    with foveate.prune(tiny.model, Drop((0, 3))) as trace, torch.no_grad():
        out = tiny.model(**inputs)
    left = trace.last.alive_per_layer()[-1] + inputs["input_ids"].shape[1] - 16
    assert out.logits.shape[1] == left
    expected = masked_logits(tiny.model, inputs, trace.to_dict(), [torch.zeros(1, dtype=torch.long)])
    assert (out.logits[:, -1] - expected[0]).abs().max() < 1e-4


def test_text_only_prompts_are_left_alone(tiny: Tiny) -> None:
    inputs = tiny.batch([[9], [4]])
    stock = generate(tiny.model, inputs, 4)
    with foveate.prune(tiny.model, Drop((0, 3))) as trace:
        pruned = generate(tiny.model, inputs, 4)
    assert torch.equal(stock[1], pruned[1])
    assert trace.prefills == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, tiny: Tiny) -> None:
    import copy

    model = copy.deepcopy(tiny.model).to(dtype)
    half = Tiny(tiny.family, model)
    inputs = half.batch(ROWS)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    with foveate.prune(model, Drop((0, 3))) as trace:
        tokens, logits = generate(model, inputs, 4)
    expected = torch.stack(masked_logits(model, inputs, trace.to_dict(), list(tokens.unbind(1))), 1)
    assert logits.isfinite().all()
    tolerance = {torch.bfloat16: 0.3, torch.float16: 0.05}[dtype]  # of logits of about 5
    assert (logits.float() - expected.float()).abs().max() < tolerance


def test_inputs_embeds_instead_of_ids(tiny_llava: Tiny) -> None:
    inputs = tiny_llava.batch([ROWS[0]])
    embeds = tiny_llava.model.get_input_embeddings()(inputs["input_ids"])
    with foveate.prune(tiny_llava.model, Drop((0, 3))), torch.no_grad():
        expected = tiny_llava.model(**inputs).logits
        rest = {k: v for k, v in inputs.items() if k != "input_ids"}
        found = tiny_llava.model(inputs_embeds=embeds, **rest).logits
    assert torch.equal(found, expected)


def test_a_generation_config_object(tiny: Tiny) -> None:
    config = GenerationConfig(max_new_tokens=3, do_sample=False, pad_token_id=0, repetition_penalty=1.2)
    with foveate.prune(tiny.model, Drop((0,))):
        assert tiny.model.generate(**tiny.batch(ROWS), generation_config=config).shape[0] == 3


def test_flash_attention_semantics(tiny: Tiny) -> None:
    """Backends that take a 2-D padding mask (flash attention) get one that fits every layer's cache.

    The kernel itself needs a GPU; this stands in for it with the same mask contract.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

    def attention(module, query, key, value, attention_mask, scaling=None, **kwargs):  # type: ignore[no-untyped-def]
        assert attention_mask is None or attention_mask.dim() == 2
        assert kwargs.get("position_ids") is None or attention_mask is not None or query.shape[2] == key.shape[2]
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        n, m = query.shape[2], key.shape[2]
        allowed = torch.ones(n, m, dtype=torch.bool).tril(m - n)[None, None]
        if not getattr(module, "is_causal", True):
            allowed = torch.ones_like(allowed)
        if attention_mask is not None:
            assert attention_mask.shape[1] == m
            allowed = allowed & attention_mask[:, None, None].bool()
        scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~allowed, -1e30)
        return (scores.softmax(-1) @ value).transpose(1, 2), None

    AttentionInterface.register("two_d_mask", attention)
    AttentionMaskInterface.register("two_d_mask", flash_attention_mask)
    inputs = tiny.batch(ROWS)
    with foveate.prune(tiny.model, Drop((0, 3))):
        expected, logits = generate(tiny.model, inputs, 4)
    try:
        tiny.model.set_attn_implementation("two_d_mask")
        with foveate.prune(tiny.model, Drop((0, 3))):
            found, again = generate(tiny.model, inputs, 4)
    finally:
        tiny.model.set_attn_implementation("sdpa")
    assert torch.equal(found, expected)
    assert (again - logits).abs().max() < 1e-4


def test_received_attention_is_that_of_the_tower(tiny_qwen: Tiny) -> None:
    """Against the tower's own eager attention, in raster order, for images of different size."""
    from foveate.core.attention import received_attention
    from foveate.core.method import Score
    from foveate.core.view import ModelInfo, Tap, View
    from foveate.families import adapt

    tap, seen = Tap("received"), []

    class Reader(Score):
        def taps(self, info: ModelInfo) -> list[Tap]:
            return [tap]

        def score(self, view: View) -> torch.Tensor:
            seen.append((view.grid, view.tap(tap)))
            return seen[-1][1]

    family, given = adapt(tiny_qwen.model), {}
    attention = family.block_attention(family.parts.blocks[family.block_of(tap)])

    def keep(module, args, kwargs):  # type: ignore[no-untyped-def]
        hidden, (cos, sin) = args[0], kwargs["position_embeddings"]
        q, k, _ = module.qkv(hidden).reshape(len(hidden), 3, module.num_heads, -1).permute(1, 2, 0, 3)
        given["qk"] = [x * cos + torch.cat([-x[..., 8:], x[..., :8]], -1) * sin for x in (q, k)]

    inputs = tiny_qwen.batch([[2, (4, 6), 3, (6, 4), 1]])
    handle = attention.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad(), foveate.prune(tiny_qwen.model, Reader(0.5)):
        tiny_qwen.model(**inputs)
    handle.remove()
    start = 0
    for grid, found in seen:
        q, k = (x[:, start : start + 4 * grid.size] for x in given["qk"])
        received = (q @ k.transpose(1, 2) / 4).softmax(-1).mean(1).sum(0).reshape(-1, 4).mean(1)
        raster = torch.empty_like(received)
        raster[grid.windows(2).argsort(stable=True)] = received
        assert torch.allclose(found, raster, atol=1e-6)
        start += 4 * grid.size
    sampled = received_attention(*given["qk"], 0.25, [96, 96], max_queries=48)
    every = received_attention(*given["qk"], 0.25, [96, 96])
    assert torch.allclose(sampled.split(96)[0].sum(), every.split(96)[0].sum(), atol=1e-4)
    assert torch.corrcoef(torch.stack([sampled, every]))[0, 1] > 0.8
