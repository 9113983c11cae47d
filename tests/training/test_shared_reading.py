"""Training reads what pruning reads, whatever the attention of the language model is like."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, Qwen3Config

import foveate
from foveate.engine.capture import KEY_BIAS, LISTENER, AttentionCall, Listening
from foveate.errors import InputError, UnsupportedModelError
from foveate.glimpse import GlimpseModule
from foveate.methods.glimpse_prune import GlimpsePrune
from foveate.training.glimpse.model import GlimpseForTraining
from foveate.training.glimpse.objectives import Objective
from foveate.training.losses import IGNORE
from tests.tiny import IMAGE, VOCAB, Tiny, make_tiny

DISTILL = Objective(localization=0, language=0, distillation=1.0, gate_temperature=0.0)


def with_normalised_queries(attention: str = "sdpa") -> Tiny:
    """LLaVA around a language model that normalises queries and keys (Qwen3), with norms that matter."""
    torch.manual_seed(0)
    text = Qwen3Config(
        hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, vocab_size=VOCAB, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=None,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, image_seq_length=16)
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_norm" in name or "k_norm" in name:
                weight.uniform_(0.5, 3.0)
            elif weight.dim() > 1:
                weight.normal_(0, weight.shape[-1] ** -0.5 if "proj" in name else 0.3)
    model.set_attn_implementation(attention)
    return Tiny("llava", model)


MODELS = {
    "llava": lambda: make_tiny("llava"),
    "qwen2_5_vl": lambda: make_tiny("qwen2_5_vl"),
    "q_norm": with_normalised_queries,
    "q_norm eager": lambda: with_normalised_queries("eager"),
}


def answered(
    tiny: Tiny, rows: list[list[Any]], answer: Tensor | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Prompts, and the same with answers of three tokens behind them."""
    prompts = tiny.batch(rows)
    if answer is None:
        answer = torch.randint(5, 80, (len(rows), 3), generator=torch.Generator().manual_seed(4))
    batch = dict(prompts)
    batch["labels"] = torch.cat([torch.full_like(prompts["input_ids"], IGNORE), answer], 1)
    batch["input_ids"] = torch.cat([prompts["input_ids"], answer], 1)
    batch["attention_mask"] = F.pad(prompts["attention_mask"], (0, 3), value=1)
    if "mm_token_type_ids" in prompts:
        batch["mm_token_type_ids"] = F.pad(prompts["mm_token_type_ids"], (0, 3))
    return prompts, batch


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("raw", [True, False], ids=["logits", "log-probabilities"])
def test_training_and_pruning_see_the_same(name: str, raw: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The predictor's input and output are those of pruned inference, in a padded batch, images first or in between."""
    tiny = MODELS[name]()
    prompts, batch = answered(tiny, [[3, (3, 4), 5], [(4, 2), 12, (2, 2), 2], [(4, 4), 1]])
    torch.manual_seed(1)
    module = GlimpseModule.for_model(
        tiny.model, le_dropout=0.0, le_length=2, selected_layers=(1, 2), reduce_layer=2, use_attention_logits=raw
    ).eval()
    with GlimpseForTraining(tiny.model, module) as training:
        masks = [torch.ones(n, dtype=torch.bool) for n in sizes(prompts)]
        found = training.eval()(masks, **batch)
        logits = [row[-1] for row in training.outcome(masks, **batch).logits]
    seen: list[Tensor] = []
    stock = GlimpsePrune.logits
    monkeypatch.setattr(GlimpsePrune, "logits", lambda self, view: seen.append(stock(self, view)) or seen[-1])
    with torch.no_grad(), foveate.prune(tiny.model, GlimpsePrune(module, threshold=0.5)) as trace:
        tiny.model(**prompts, use_cache=False)
    assert len(seen) == 3
    for ours, theirs in zip(logits, seen, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)
    kept = [len(group.alive_at(4)) / sum(grid.size for grid in group.grids) for group in trace.prefills[0].groups]
    assert found["kept"].tolist() == pytest.approx(kept)


def sizes(prompts: dict[str, Tensor]) -> list[int]:
    """Visual tokens of each row."""
    return (prompts["input_ids"] == IMAGE).sum(1).tolist()


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "q_norm eager"])
@pytest.mark.parametrize("layer", [1, 2, -1], ids=["early", "middle", "behind all layers"])
def test_gates_answer_as_pruned_generation_does(name: str, layer: int) -> None:
    tiny = MODELS[name]()
    prompts = tiny.batch([[3, (3, 4), 5], [(4, 2), 12, (2, 2), 2]])
    last = len(tiny.model.model.language_model.layers) - 1
    torch.manual_seed(1)
    module = GlimpseModule.for_model(
        tiny.model, le_dropout=0.0, selected_layers=(1,), reduce_layer=last if layer < 0 else layer, max_keep=0.3
    ).eval()
    tiny.model.generation_config.eos_token_id = None
    start = prompts["input_ids"].shape[1]
    with foveate.prune(tiny.model, GlimpsePrune(module)):
        answer = tiny.model.generate(**prompts, max_new_tokens=3, do_sample=False)[:, start:]
    stock = tiny.model.generate(**prompts, max_new_tokens=3, do_sample=False)[:, start:]
    _, batch = answered(tiny, [[3, (3, 4), 5], [(4, 2), 12, (2, 2), 2]], answer)
    masks = [torch.ones(n, dtype=torch.bool) for n in sizes(prompts)]
    with GlimpseForTraining(tiny.model, module) as training:
        found = training.eval()(masks, **batch)
    assert found["accuracy"].tolist() == [1.0, 1.0]
    assert found["accuracy_unpruned"].tolist() == (answer == stock).all(1).float().tolist()


@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_the_glimpse_vectors(name: str) -> None:
    """Through queries and keys as they were captured: the slope along the gradient is its length."""
    tiny = MODELS[name]()
    prompts, batch = answered(tiny, [[3, (3, 4), 5], [(4, 2), 6]])
    masks = [torch.arange(n) % 3 == 0 for n in sizes(prompts)]
    torch.manual_seed(1)
    module = GlimpseModule.for_model(tiny.model, le_dropout=0.0, le_length=2, selected_layers=(1, 2), reduce_layer=2)
    with GlimpseForTraining(tiny.model, module, Objective(distillation=1.0, gate_temperature=0.0)) as training:
        training.train().outcome(masks, **batch).total.backward()
        gradient = module.embeddings.grad
        assert gradient is not None
        assert all(gradient[layer].abs().max() > 0 for layer in range(3))  # layers 0, 1 and 2 come before the reading
        direction, values = gradient / gradient.norm(), []
        for sign in (1, -1):
            with torch.no_grad():
                module.embeddings.add_(direction, alpha=sign * 1e-3)
                values.append(training.outcome(masks, **batch).total.item())
                module.embeddings.sub_(direction, alpha=sign * 1e-3)
    assert (values[0] - values[1]) / 2e-3 == pytest.approx(gradient.norm().item(), rel=3e-2)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_bias_per_key_is_an_additive_mask(attention: str) -> None:
    """Outputs and gradients of a layer, with fewer heads of keys than of queries."""
    tiny = with_normalised_queries(attention)
    layer: Any = tiny.model.model.language_model.layers[1]
    torch.manual_seed(2)
    hidden, n = torch.randn(2, 7, 64), 7
    rotary = tiny.model.model.language_model.rotary_emb(hidden, torch.arange(n)[None])
    causal = torch.full((n, n), torch.finfo(torch.float32).min).triu(1)
    results = []
    for dense in (True, False):
        bias = torch.linspace(-3, 0, 14).view(2, 7).requires_grad_()
        own = hidden.clone().requires_grad_()
        heard: list[AttentionCall] = []
        listening = Listening(layer.self_attn, lambda call: None)
        if dense:
            out = layer(own, attention_mask=causal + bias[:, None, None], position_embeddings=rotary)
        else:
            mask = causal if attention == "eager" else None
            more = {KEY_BIAS: bias, LISTENER: heard.append}
            out = layer(own, attention_mask=mask, position_embeddings=rotary, **more)
            assert heard[0].k.shape == (2, 2, 7, 16)
        out = out[0] if isinstance(out, tuple) else out
        out.square().sum().backward()
        listening.remove()
        results.append((out.detach(), own.grad, bias.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    assert layer.self_attn.config._attn_implementation == attention


def test_several_may_listen_to_one_module() -> None:
    """Training and pruning at once, handles removed in any order."""
    tiny = with_normalised_queries()
    prompts = tiny.batch([[3, (4, 4), 5]])
    module: Any = tiny.model.model.language_model.layers[1].self_attn
    original, calls = module.config, [0, 0]
    listeners = [lambda call: calls.__setitem__(0, calls[0] + 1), lambda call: calls.__setitem__(1, calls[1] + 1)]
    first, second = Listening(module, listeners[0]), Listening(module, listeners[1])
    tiny.model(**prompts)
    first.remove()
    tiny.model(**prompts)
    second.remove()
    tiny.model(**prompts)
    assert calls == [1, 2]
    assert module.config is original
    glimpse = GlimpseModule.for_model(tiny.model).eval()
    with GlimpseForTraining(tiny.model, glimpse), torch.no_grad(), foveate.prune(tiny.model, GlimpsePrune(glimpse)):
        tiny.model(**prompts)
    assert module.config is original


def test_layers_that_keep_their_arguments_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that does not arrive would train on something else, in silence."""
    tiny = with_normalised_queries()
    _, batch = answered(tiny, [[3, (4, 4), 5]])
    attention = tiny.model.model.language_model.layers[-1].self_attn
    stock = type(attention).forward

    def forward(self: nn.Module, hidden_states: Tensor, **kwargs: Any) -> Any:
        if self is attention:
            kwargs = {name: x for name, x in kwargs.items() if not name.startswith("foveate")}
        return stock(self, hidden_states, **kwargs)

    monkeypatch.setattr(type(attention), "forward", forward)
    module = GlimpseModule.for_model(tiny.model)
    with GlimpseForTraining(tiny.model, module, DISTILL) as training, pytest.raises(UnsupportedModelError, match="3"):
        training.train().outcome(**batch)


def test_an_image_in_an_answer_is_refused() -> None:
    tiny = make_tiny("qwen2_5_vl")
    batch = tiny.batch([[3, (2, 2), 4]])
    labels = torch.full_like(batch["input_ids"], IGNORE)
    labels[:, 2] = batch["input_ids"][:, 2]
    module = GlimpseModule.for_model(tiny.model)
    with GlimpseForTraining(tiny.model, module, DISTILL) as training, pytest.raises(InputError, match="in its answer"):
        training.outcome(**batch, labels=labels)
