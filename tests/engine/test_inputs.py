"""Bad input: each has its own clear error, and good input of unusual shape works."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.errors import InputError, MissingTapError
from foveate.methods import Random, ViTCoP
from tests.reference import Drop, generate
from tests.tiny import IMAGE, Tiny, make_tiny

ROWS = [[3, (4, 4), 5], [2, (4, 6), 3, (2, 4), 4], [7]]


def test_right_padding_in_generate(tiny: Tiny) -> None:
    inputs = tiny.batch([[3, (4, 4), 9], [3, (4, 4), 5]])
    short = int(inputs["attention_mask"][1].sum())
    for key in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if key in inputs:
            inputs[key][1] = inputs[key][1].roll(short)
    with foveate.prune(tiny.model, Drop((0,))), pytest.raises(InputError, match=r"\[1\].*padding_side"):
        generate(tiny.model, inputs, 2)
    with foveate.prune(tiny.model, Drop((0,))), torch.no_grad():
        assert tiny.model(**inputs, use_cache=False).logits.isfinite().all()


def test_too_few_and_too_many_placeholders(tiny: Tiny) -> None:
    for delta in (-1, 1):
        inputs = tiny.batch([[3, (4, 4), 5]])
        row = inputs["input_ids"][0].tolist()
        at = row.index(IMAGE)
        row = row[:at] + row[at + 1 :] if delta < 0 else [*row[:at], IMAGE, *row[at:]]
        inputs["input_ids"] = torch.tensor([row])
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if tiny.family == "qwen2_5_vl":
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
        with foveate.prune(tiny.model, Drop((0,))), pytest.raises(InputError, match="placeholder"):
            tiny.model(**inputs)


def test_images_that_do_not_fit_their_rows(tiny_qwen: Tiny) -> None:
    """The total is right but the first row cannot be filled: stock code would mix the rows up silently."""
    inputs = tiny_qwen.batch([[3, (2, 4), 5], [3, (4, 4), 5]])
    inputs["image_grid_thw"] = inputs["image_grid_thw"].flip(0)
    with foveate.prune(tiny_qwen.model, Drop((0,))), pytest.raises(InputError, match="row 0"):
        tiny_qwen.model(**inputs)


def test_prepared_masks(tiny: Tiny) -> None:
    inputs = tiny.batch([[3, (4, 4), 5]])
    n = inputs["input_ids"].shape[1]
    inputs["attention_mask"] = torch.ones(1, 1, n, n, dtype=torch.bool).tril()
    positions = torch.arange(n)[None]
    if tiny.family == "qwen2_5_vl":
        positions = positions[None].expand(3, -1, -1)
    with foveate.prune(tiny.model, Drop((0,))), pytest.raises(InputError, match="2-D padding mask"):
        tiny.model(**inputs, position_ids=positions)


def test_mask_of_another_length(tiny_llava: Tiny) -> None:
    inputs = tiny_llava.batch([[3, (4, 4), 5]])
    inputs["attention_mask"] = inputs["attention_mask"][:, 1:]
    with foveate.prune(tiny_llava.model, Drop((0,))), pytest.raises(InputError, match="full conversation"):
        tiny_llava.model(**inputs)


def test_images_encoded_elsewhere(tiny: Tiny) -> None:
    inputs = tiny.batch([[3, (4, 4), 5]])
    keys = [k for k in ("pixel_values", "image_grid_thw") if k in inputs]
    with torch.no_grad():
        features = tiny.model.model.get_image_features(**{k: inputs.pop(k) for k in keys}, return_dict=True)
    inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1])[None]
    if tiny.family == "qwen2_5_vl":
        inputs["position_ids"] = inputs["position_ids"][None].expand(3, -1, -1)
    with torch.no_grad(), foveate.prune(tiny.model, ViTCoP(0.3)), pytest.raises(MissingTapError, match="outside"):
        tiny.model(**inputs, mm_encoder_outputs={"image": features})
    with torch.no_grad(), foveate.prune(tiny.model, Random(0.5)) as trace:  # needs no tap
        tiny.model(**inputs, mm_encoder_outputs={"image": features})
    assert trace.last.alive_per_layer()[0] == 8


def test_a_tap_the_tower_does_not_have(tiny: Tiny) -> None:
    method = ViTCoP(0.3, saliency_block=99)
    with pytest.raises(MissingTapError, match="99"), foveate.prune(tiny.model, method):
        pass


def test_chunked_prefill(tiny_llava: Tiny) -> None:
    inputs = tiny_llava.batch([[3, (4, 4), 5]])
    with foveate.prune(tiny_llava.model, Drop((0,))), pytest.raises((InputError, ValueError)):
        generate(tiny_llava.model, inputs, 2, prefill_chunk_size=8)


@pytest.mark.parametrize("family", ["qwen2_5_vl"])
def test_image_sizes_from_one_token_up(family: str) -> None:
    tiny = make_tiny(family)
    for grid in ((1, 1), (1, 5), (7, 1), (3, 5)):
        inputs = tiny.batch([[2, grid, 3]])
        for method in (ViTCoP(1 / 9), Random(0.1), Drop((0, 3))):
            with foveate.prune(tiny.model, method) as trace:
                _, logits = generate(tiny.model, inputs, 2)
            assert logits.isfinite().all()
            assert trace.last.alive_per_layer()[-1] >= 1


def test_a_selection_of_the_wrong_size_is_named(tiny: Tiny) -> None:
    class Wrong(Drop):
        def select(self, view):  # type: ignore[no-untyped-def]
            return torch.ones(len(view) + 1, dtype=torch.bool)

    with foveate.prune(tiny.model, Wrong((0,))), pytest.raises(foveate.errors.ConfigurationError, match="view"):
        generate(tiny.model, tiny.batch(ROWS), 2)
