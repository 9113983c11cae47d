"""Copies and pickles of a pruned model are stock; interrupted calls and unused features leave nothing behind."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from typing import Any

import pytest
import torch

import foveate
from foveate.core.method import Reads
from foveate.core.view import ModelInfo
from foveate.engine.cache import FoveatedCache
from foveate.engine.capture import Heard
from foveate.engine.session import current_session
from foveate.methods import FastV, Random, ViTCoP
from tests.reference import Drop, generate
from tests.tiny import FAMILIES, Tiny, make_tiny


@pytest.fixture(params=["llava", "qwen2_5_vl"])
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return make_tiny(request.param)


def hooks(model: Any) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def listened(model: Any) -> list[Any]:
    return [m for m in model.modules() if isinstance(getattr(m, "config", None), Heard)]


def test_a_deep_copy_is_stock_and_can_be_pruned(tiny: Tiny) -> None:
    inputs, before = tiny.batch([[3, (4, 4), 5]]), hooks(tiny.model)
    stock = generate(tiny.model, inputs, 3)[1]
    with foveate.prune(tiny.model, FastV(0.7)):  # listens to a decoder layer
        assert listened(tiny.model)
        copied = copy.deepcopy(tiny.model)
        assert not listened(copied)
        assert torch.equal(generate(copied, inputs, 3)[1], stock)  # inside the block too
    assert hooks(copied) == before
    with foveate.prune(copied, FastV(0.7)) as trace:
        found = generate(copied, inputs, 3)[1]
    with foveate.prune(tiny.model, FastV(0.7)):
        assert torch.equal(found, generate(tiny.model, inputs, 3)[1])
    assert trace.keep_ratio < 1
    assert hooks(copied) == before
    assert not listened(tiny.model)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_pickled_model_is_stock(family: str) -> None:
    model = FAMILIES[family]().eval()  # fresh: stock code leaves closures of its own on a model that has run
    with foveate.prune(model, FastV(0.7)):
        file = io.BytesIO()
        torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert not listened(loaded)
    inputs = make_tiny(family).batch([[3, (4, 4), 5]])
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
        with foveate.prune(loaded, FastV(0.7)) as trace:
            loaded(**inputs)
    assert trace.keep_ratio < 1


def test_an_interrupt_leaves_no_cache(tiny: Tiny) -> None:
    def stop(*given: Any) -> None:
        raise KeyboardInterrupt

    inputs = tiny.batch([[3, (4, 4), 5]])
    expected = None
    foveate.attach(tiny.model, Random(0.5))
    try:
        expected = generate(tiny.model, inputs, 3)[1]
        handle = tiny.model.model.language_model.layers[3].register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            tiny.model(**inputs)
        handle.remove()
        gc.collect()
        assert not [o for o in gc.get_objects() if isinstance(o, FoveatedCache)]
        assert torch.equal(generate(tiny.model, inputs, 3)[1], expected)
    finally:
        foveate.detach(tiny.model)


def test_features_that_nobody_uses_are_forgotten(tiny: Tiny) -> None:
    inputs = tiny.batch([[3, (4, 4), 5]])
    pictures = {name: inputs[name] for name in ("pixel_values", "image_grid_thw") if name in inputs}
    with foveate.prune(tiny.model, ViTCoP(0.5)) as trace:
        for _ in range(60):
            with torch.no_grad():
                tiny.model.model.get_image_features(**pictures)
        session = current_session(tiny.model.model)
        assert session is not None
        assert len(session.local.tower_calls) < 20
        generate(tiny.model, inputs, 2)
    assert len(trace.prefills) == 1


def test_features_that_somebody_holds_are_remembered(tiny: Tiny) -> None:
    """Thirty images are encoded one by one, then asked about together."""
    inputs = tiny.batch([[1, *[(4, 4), 1] * 30]])
    sizes = 1 if tiny.family == "llava" else inputs["image_grid_thw"].prod(-1).tolist()
    parts = inputs.pop("pixel_values").split(sizes)
    grids = [{}] * 30 if tiny.family == "llava" else [{"image_grid_thw": g} for g in inputs["image_grid_thw"].split(1)]
    with foveate.prune(tiny.model, ViTCoP(0.5)) as trace, torch.no_grad():
        outputs = [
            tiny.model.model.get_image_features(pixel_values=pixels, return_dict=True, **grid)
            for pixels, grid in zip(parts, grids, strict=True)
        ]
        joined = copy.copy(outputs[0])
        joined.pooler_output = [feature for output in outputs for feature in output.pooler_output]
        inputs.pop("image_grid_thw", None)
        more = {"position_ids": torch.arange(inputs["input_ids"].shape[1])[None]}
        tiny.model(**inputs, **more, mm_encoder_outputs={"image": joined})
    assert trace.last.visual_tokens == 480


def test_modules_without_parameters(tiny: Tiny) -> None:
    """Weights in buffers, as quantised layers hold them: devices are those of the inputs."""
    model = copy.deepcopy(tiny.model)
    for module in (m for m in model.modules() if isinstance(m, torch.nn.Linear)):
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                del module._parameters[name]
                module.register_buffer(name, weight.data)
    assert not list(model.model.language_model.layers[0].self_attn.parameters())
    inputs = tiny.batch([[3, (4, 4), 5]])
    for method in (ViTCoP(0.5), FastV(0.7), Drop((0, 3))):
        with foveate.prune(tiny.model, method), torch.no_grad():
            expected = tiny.model(**inputs).logits
        with foveate.prune(model, method), torch.no_grad():
            assert torch.equal(model(**inputs).logits, expected)


def test_a_trace_of_a_long_block_is_on_the_host(tiny: Tiny) -> None:
    with foveate.prune(tiny.model, ViTCoP(0.5)) as trace:
        for _ in range(3):
            generate(tiny.model, tiny.batch([[3, (4, 4), 5]]), 2)
    assert len(trace.prefills) == 3
    tensors = [t for p in trace.prefills for g in p.groups for t in (g.columns, *(s.alive for s in g.steps))]
    assert {t.device.type for t in tensors} == {"cpu"}


def test_a_captured_layer_is_let_go(tiny: Tiny) -> None:
    """Queries and keys of a layer live until the stage behind it has read them."""
    held: list[weakref.ref[Any]] = []

    class Spy(Drop):
        def select(self, view: foveate.View) -> torch.Tensor:
            held.append(weakref.ref(view.source.row.keys()))  # type: ignore[attr-defined]
            return super().select(view)

    with foveate.prune(tiny.model, Spy((2,), queries=True)):
        generate(tiny.model, tiny.batch([[3, (4, 4), 5]]), 2)
        gc.collect()
        assert [ref() for ref in held] == [None] * len(held)
    assert held


def test_words_for_what_a_stage_reads() -> None:
    reads: tuple[Reads, ...] = ("nothing", "keys", "attention")
    for word in reads:
        assert foveate.Stage(1, reads=word).reads == word
    assert ModelInfo().layers == 1
