"""Follow-up turns on a pruned cache: full conversation in, later images pruned too, chats do not mix."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate.engine.cache import FoveatedCache
from foveate.errors import CacheStateError
from tests.reference import Drop, masked_logits, weights
from tests.tiny import IMAGE, Tiny


def generate(model: Any, inputs: dict[str, Tensor], steps: int, **more: Any) -> Any:
    return model.generate(
        **inputs, max_new_tokens=steps, do_sample=False, output_logits=True, return_dict_in_generate=True, **more
    )


def follow_up(
    tiny: Tiny, before: dict[str, Tensor], out: Any, rows: list, all_images: bool = True
) -> dict[str, Tensor]:
    """Inputs of the full conversation: `out`'s sequences plus one more (equally long) part per row."""
    new = tiny.batch(rows, seed=1)
    assert bool(new["attention_mask"].all())
    ids = torch.cat([out.sequences, new["input_ids"]], 1)
    padding = before["attention_mask"]
    tail = torch.ones(ids.shape[0], ids.shape[1] - padding.shape[1], dtype=padding.dtype)
    inputs = {"input_ids": ids, "attention_mask": torch.cat([padding, tail], 1)}
    if tiny.family == "qwen2_5_vl":
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    if "pixel_values" in new or all_images:
        sources = [before, new] if all_images else [new]
        for key in ("pixel_values", "image_grid_thw"):
            found = [source[key] for source in sources if key in source]
            if found:
                inputs[key] = torch.cat(found)
    return inputs


def union(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Trace of a conversation from the traces of two turns."""
    rows = []
    for a, b in zip(first["rows"], second["rows"], strict=True):
        layers = [
            {"positions": sorted(x["positions"] + y["positions"])}
            for x, y in zip(a["layers"], b["layers"], strict=True)
        ]
        kept = sorted(a["kept"] + b["kept"])
        rows.append({"images": a["images"] + b["images"], "layers": layers, "kept": kept})
    return {"rows": rows}


@pytest.mark.parametrize("proportional", [False, True])
@pytest.mark.parametrize("layers", [(0,), (3,), (0, 2, 4)])
def test_an_image_of_a_later_turn_is_pruned_too(tiny: Tiny, layers: tuple[int, ...], proportional: bool) -> None:
    first = tiny.batch([[3, (4, 4), 5]])
    with foveate.prune(tiny.model, Drop(layers, proportional=proportional)) as trace:
        one = generate(tiny.model, first, 4)
        inputs = follow_up(tiny, first, one, [[4, (4, 6), 3]])
        length = one.past_key_values.get_seq_length()
        assert length == one.sequences.shape[1] - 1
        two = generate(tiny.model, inputs, 4, past_key_values=one.past_key_values)
    assert len(trace.prefills) == 2
    assert isinstance(two.past_key_values, FoveatedCache)
    seen = union(trace.prefills[0].to_dict(), trace.prefills[1].to_dict())
    for row in seen["rows"]:
        for layer in row["layers"]:
            assert (inputs["input_ids"][0, layer["positions"]] == IMAGE).all()
    tokens = two.sequences[:, -4:]
    own = weights(trace.prefills, inputs["input_ids"].shape) if proportional else None
    expected = masked_logits(tiny.model, inputs, seen, list(tokens.unbind(1)), weights=own)
    assert (torch.stack(expected, 1) - torch.stack(two.logits, 1)).abs().max() < 1e-4


def test_padded_batch_with_images_in_both_turns(tiny: Tiny) -> None:
    first = tiny.batch([[3, (4, 4), 5], [9, (4, 4), (4, 4), 2]])
    with foveate.prune(tiny.model, Drop((0, 3))) as trace:
        one = generate(tiny.model, first, 3)
        new = [[2, (4, 4), 3], [2, (4, 4), 3]]
        # the images of a row come together: first all of row 0, then all of row 1
        inputs = follow_up(tiny, first, one, new)
        inputs = reorder_images(tiny, inputs, first, tiny.batch(new, seed=1))
        two = generate(tiny.model, inputs, 3, past_key_values=one.past_key_values)
    seen = union(trace.prefills[0].to_dict(), trace.prefills[1].to_dict())
    tokens = two.sequences[:, -3:]
    expected = masked_logits(tiny.model, inputs, seen, list(tokens.unbind(1)))
    assert (torch.stack(expected, 1) - torch.stack(two.logits, 1)).abs().max() < 1e-4


def reorder_images(
    tiny: Tiny, inputs: dict[str, Tensor], first: dict[str, Tensor], new: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Row by row: old images 1 + 2, new images 1 + 1, all of the same size."""
    per_image = 64 if tiny.family == "qwen2_5_vl" else 1
    old = list(first["pixel_values"].split(per_image))
    later = list(new["pixel_values"].split(per_image))
    inputs["pixel_values"] = torch.cat([old[0], later[0], old[1], old[2], later[1]])
    return inputs


def test_llava_takes_the_new_image_alone(tiny_llava: Tiny) -> None:
    first = tiny_llava.batch([[3, (4, 4), 5]])
    with foveate.prune(tiny_llava.model, Drop((0, 2))):
        one = generate(tiny_llava.model, first, 3)
        spare = copy.deepcopy(one.past_key_values)
        every = follow_up(tiny_llava, first, one, [[4, (4, 4), 3]])
        alone = follow_up(tiny_llava, first, one, [[4, (4, 4), 3]], all_images=False)
        a = generate(tiny_llava.model, every, 3, past_key_values=one.past_key_values)
        b = generate(tiny_llava.model, alone, 3, past_key_values=spare)
    assert torch.equal(torch.stack(a.logits), torch.stack(b.logits))


def test_interleaved_chats_do_not_mix(tiny: Tiny) -> None:
    """Stock M-RoPE models keep the position offset of the last prompt on the model."""

    def chat(rows: list, method: Drop, other: Any = None) -> Tensor:
        first = tiny.batch(rows)
        with foveate.prune(tiny.model, method):
            one = generate(tiny.model, first, 3)
            if other is not None:
                other()
            inputs = follow_up(tiny, first, one, [[6]], all_images=False)
            return torch.stack(generate(tiny.model, inputs, 3, past_key_values=one.past_key_values).logits)

    alone = chat([[3, (4, 4), 5]], Drop((1,)))
    disturbed = chat([[3, (4, 4), 5]], Drop((1,)), lambda: chat([[1, (6, 6), 2, (4, 6), 9]], Drop((2,), 0.3)))
    assert torch.equal(alone, disturbed)


def test_pruned_cache_outside_foveate_is_refused(tiny: Tiny) -> None:
    first = tiny.batch([[3, (4, 4), 5]])
    with foveate.prune(tiny.model, Drop((0,))):
        one = generate(tiny.model, first, 3)
    inputs = follow_up(tiny, first, one, [[6]], all_images=False)
    with pytest.raises(CacheStateError, match="foveate"):
        generate(tiny.model, inputs, 3, past_key_values=copy.deepcopy(one.past_key_values))
    with foveate.prune(tiny.model, None):
        generate(tiny.model, inputs, 3, past_key_values=one.past_key_values)


def test_a_users_own_cache_is_upgraded_in_place(tiny: Tiny) -> None:
    from transformers import DynamicCache

    cache = DynamicCache(config=tiny.model.config.get_text_config())
    first = tiny.batch([[3, (4, 4), 5]])
    with foveate.prune(tiny.model, Drop((0,), 0.25)):
        one = generate(tiny.model, first, 3, past_key_values=cache)
    assert one.past_key_values is cache
    assert cache.get_seq_length() == one.sequences.shape[1] - 1
    assert cache.layers[0].keys.shape[2] == cache.get_seq_length() - 12
