"""Settings of a forward pass that pruning changes lengths of: right, or refused by name."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

import foveate
from foveate.errors import ConfigurationError, InputError
from foveate.methods import Random
from tests.reference import Drop, generate
from tests.tiny import Tiny, make_tiny


@pytest.fixture(params=["llava", "qwen2_5_vl"])
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return make_tiny(request.param)


def test_labels_and_places_need_the_full_length(tiny: Tiny) -> None:
    inputs = tiny.batch([[3, (4, 4), 5]])
    with foveate.prune(tiny.model, Random(0.5)):
        with pytest.raises(ConfigurationError, match="`labels`.*full_length=True"):
            tiny.model(**inputs, labels=inputs["input_ids"])
        with pytest.raises(ConfigurationError, match=r"`logits_to_keep`.*full_length=True"):
            tiny.model(**inputs, logits_to_keep=torch.tensor([3, 7]))
    with foveate.prune(tiny.model, Random(0.5), full_length=True), torch.no_grad():
        assert tiny.model(**inputs, labels=inputs["input_ids"]).loss.isfinite()
        assert tiny.model(**inputs, logits_to_keep=torch.tensor([3, 7])).logits.shape[1] == 2


def test_hidden_states_have_one_length(tiny: Tiny) -> None:
    inputs = tiny.batch([[3, (4, 4), 5]])
    n = inputs["input_ids"].shape[1]
    with foveate.prune(tiny.model, Drop((0, 3)), full_length=True) as trace, torch.no_grad():
        out = tiny.model(**inputs, output_hidden_states=True)
    assert [state.shape[1] for state in out.hidden_states] == [n] * 7
    for layer, state in enumerate(out.hidden_states[:-1]):
        kept = set(trace.to_dict()["rows"][0]["layers"][max(layer - 1, 0)]["positions"])
        text = set((inputs["input_ids"][0] != 90).nonzero().squeeze(1).tolist())
        assert {int(i) for i in (state[0].abs().sum(-1) > 0).nonzero()} == kept | text


def test_generating_while_training_with_checkpoints_is_refused(tiny: Tiny) -> None:
    """Stock layers then keep no cache, so the answer would be about nothing."""
    tiny.model.train()
    tiny.model.gradient_checkpointing_enable()
    try:
        with foveate.prune(tiny.model, Random(0.5)), pytest.raises(InputError, match="gradient checkpointing"):
            generate(tiny.model, tiny.batch([[3, (4, 4), 5]]), 2)
    finally:
        tiny.model.gradient_checkpointing_disable()
        tiny.model.eval()


@pytest.mark.parametrize("rows", [[[3, (4, 4), 5]], [[3, (4, 4), 5], [2, (4, 4), 6]]])
def test_chunked_prefill_is_refused_by_name(tiny: Tiny, rows: list[list[object]]) -> None:
    with foveate.prune(tiny.model, Random(0.5)), pytest.raises(InputError, match="prefill_chunk_size"):
        generate(tiny.model, tiny.batch(rows), 2, prefill_chunk_size=8)


def test_images_without_placeholders_are_refused(tiny: Tiny) -> None:
    """A model that joins images otherwise must not be left unpruned in silence."""
    inputs = tiny.batch([[3, (4, 4), 5]])
    inputs["input_ids"] = torch.where(inputs["input_ids"] == 90, 7, inputs["input_ids"])
    with foveate.prune(tiny.model, Random(0.5)), pytest.raises(InputError, match="no image placeholder tokens"):
        tiny.model(**inputs)


def test_embeddings_without_images_are_told(tiny: Tiny) -> None:
    embeds = tiny.model.get_input_embeddings()(tiny.batch([[3, (4, 4), 5]])["input_ids"])
    positions = torch.arange(embeds.shape[1]).expand(*((1,) if tiny.family == "llava" else (3, 1)), -1)
    with torch.no_grad(), foveate.prune(tiny.model, Random(0.5)), pytest.warns(UserWarning, match="prunes nothing"):
        tiny.model(inputs_embeds=embeds, position_ids=positions)


def test_a_compiled_layer_is_pruned_like_any_other(tiny: Tiny) -> None:
    inputs, layer = tiny.batch([[3, (4, 4), 5]]), tiny.model.model.language_model.layers[2]
    with foveate.prune(tiny.model, Drop((0, 3))):
        expected = generate(tiny.model, inputs, 3)
    layer.compile(backend="eager")
    try:
        with foveate.prune(tiny.model, Drop((0, 3))):
            found = generate(tiny.model, inputs, 3)
    finally:
        layer._compiled_call_impl = None
    assert torch.equal(found[0], expected[0])
    assert (found[1] - expected[1]).abs().max() < 1e-4


def test_hidden_states_of_a_padded_batch_stand_where_they_stood(tiny: Tiny) -> None:
    """Layers before the stage saw everything, so their states are stock's."""
    inputs = tiny.batch([[40], [3, (4, 4), 2]])
    with torch.no_grad():
        stock = tiny.model(**inputs, output_hidden_states=True).hidden_states
        with foveate.prune(tiny.model, Drop((2,), 0.3), full_length=True):
            states = tiny.model(**inputs, output_hidden_states=True).hidden_states
    real = inputs["attention_mask"].bool()
    for found, expected in zip(states[:3], stock[:3], strict=True):
        assert torch.equal(found[real], expected[real])


def test_logits_of_a_few_places_are_those_of_the_whole(tiny: Tiny) -> None:
    """Also where the last places reach into the image, and in the next call."""
    inputs = tiny.batch([[3, (4, 4), 2]])

    def last(keep: int) -> torch.Tensor:
        cache = DynamicCache(config=tiny.model.config.get_text_config())
        return tiny.model(**inputs, past_key_values=cache, logits_to_keep=keep).logits[:, -1]

    with torch.no_grad(), foveate.prune(tiny.model, Random(0.5)):
        whole = last(1)
        for keep in (2, 3, 10, 1):
            assert (last(keep) - whole).abs().max() < 1e-4


def test_labels_without_an_image_need_no_full_length(tiny: Tiny) -> None:
    inputs = tiny.batch([[9]])
    with foveate.prune(tiny.model, Random(0.5)), torch.no_grad():
        assert tiny.model(**inputs, labels=inputs["input_ids"]).loss.isfinite()
