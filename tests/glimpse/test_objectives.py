"""The training steps on stock models: against the official code, and against pruned inference."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from foveate.errors import CheckpointError, ConfigurationError, InputError
from foveate.glimpse import GlimpseModule, losses
from foveate.glimpse.train.model import GlimpseForTraining
from foveate.glimpse.train.objectives import Objective

from .conftest import GOLDEN, assert_close, assert_gradient_close, golden_cases, golden_path, golden_tensors

STEPS = golden_cases("gp_*/train_*")
PROMPTS = [
    name for name in golden_cases("gp_*/*/outputs.safetensors") if "variants" not in name and "train_" not in name
]
OFFICIAL_NAMES = {"attn_fuser": "vip", "learnable_embeddings": "embeddings", "le_proj": "projection", "le_norm": "norm"}
INPUTS = ("input_ids", "attention_mask", "labels", "mm_token_type_ids", "pixel_values", "image_grid_thw")
DISTILL = Objective(localization=0, language=0, distillation=1.0, keep_rate=0.5, keep_target=0.05)


def load_base(name: str, attention: str = "sdpa") -> nn.Module:
    path = golden_path(f"{name}/base")
    return AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32, attn_implementation=attention)


def load_step(name: str) -> tuple[dict[str, Tensor], list[Tensor], dict[str, Tensor]]:
    """Model arguments, evidence masks and official results of a `train_*` fixture."""
    family, case = name.split("/")
    inputs = golden_tensors(f"{name}/inputs.safetensors")
    images = golden_tensors(f"{family}/{case.removeprefix('train_')}/inputs.safetensors")
    batch = {k: v for k, v in {**images, **inputs}.items() if k in INPUTS}
    masks = [inputs[f"ref_mask.{b}"].flatten().bool() for b in range(len(batch["input_ids"]))]
    return batch, masks, golden_tensors(f"{name}/outputs.safetensors")


def gradients(module: GlimpseModule) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def step(
    base: nn.Module,
    module: GlimpseModule,
    objective: Objective,
    batch: dict[str, Tensor],
    masks: list[Tensor] | None,
    prepare: Callable[[GlimpseForTraining], None] = lambda model: None,
) -> tuple[SimpleNamespace, dict[str, Tensor]]:
    module.zero_grad()
    with GlimpseForTraining(base, module, objective) as model:
        prepare(model)
        outcome = model.train().outcome(masks, **batch)
        outcome.total.backward()
    return outcome, gradients(module)


@pytest.mark.parametrize("name", STEPS)
def test_supervised_step_is_the_official_one(name: str) -> None:
    family = name.split("/")[0]
    batch, masks, expected = load_step(name)
    module = GlimpseModule.from_official(golden_path(f"{family}/new_modules"))
    outcome, grads = step(load_base(family), module, Objective(official=True), batch, masks)
    for term in ("le_loss", "loc_loss", "dice_loss", "bce_loss"):
        if term in expected:
            assert_close(outcome.terms[term], expected[term], atol=1e-5)
    assert_close(outcome.total, expected["total_loss"], atol=1e-5)
    for b, logits in enumerate(outcome.logits):
        assert_close(logits, expected[f"vip_logits.{b}"])
    checked = 0
    for key, gradient in expected.items():
        if key.startswith("grad."):
            head, _, rest = key.removeprefix("grad.").partition(".")
            ours = OFFICIAL_NAMES[head] + (f".{rest}" if rest else "")
            assert_gradient_close(ours, grads[ours], gradient)
            checked += 1
    assert checked == len(grads)


@pytest.mark.parametrize("name", [s for s in STEPS if "llava" in s])
def test_answer_is_not_in_the_normaliser_unless_official(name: str) -> None:
    """Log-probabilities must not depend on the answer, or training and inference differ."""
    batch, masks, expected = load_step(name)
    module = GlimpseModule.from_official(golden_path(f"{name.split('/')[0]}/new_modules"))
    base = load_base(name.split("/")[0])
    outcome, _ = step(base, module, Objective(), batch, masks)
    assert not torch.allclose(outcome.logits[0], expected["vip_logits.0"], atol=1e-3)
    answer = batch["labels"] != losses.IGNORE
    other = dict(batch, input_ids=torch.where(answer, (batch["input_ids"] + 7) % 300, batch["input_ids"]))
    changed, _ = step(base, module, Objective(), other, masks)
    assert_close(changed.logits[0], outcome.logits[0], atol=1e-5)


def with_answer(name: str, answer: Tensor | None = None) -> dict[str, Tensor]:
    """A prompt fixture, followed by an answer (arbitrary tokens, if none is given)."""
    inputs = golden_tensors(f"{name}/inputs.safetensors")
    batch = {k: v for k, v in inputs.items() if k in INPUTS}
    rows = len(batch["input_ids"])
    answer = torch.arange(11, 11 + rows * 3).view(rows, 3) if answer is None else answer
    batch["labels"] = torch.cat([torch.full_like(batch["input_ids"], losses.IGNORE), answer], 1)
    batch["input_ids"] = torch.cat([batch["input_ids"], answer], 1)
    batch["attention_mask"] = torch.cat([batch["attention_mask"], torch.ones_like(answer)], 1)
    if "mm_token_type_ids" in batch:
        types = batch["mm_token_type_ids"]
        batch["mm_token_type_ids"] = torch.cat([types, torch.zeros_like(answer, dtype=types.dtype)], 1)
    return batch


def generated(expected: dict[str, Tensor], key: str) -> Tensor:
    """What the official code generated; for a batch that it decodes wrongly, row by row."""
    rows = [expected[name] for name in sorted(expected) if name.startswith("row") and name.endswith(f".{key}")]
    return torch.cat(rows) if rows else expected[key]


@pytest.mark.parametrize("name", [p.removesuffix("/outputs.safetensors") for p in PROMPTS])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_hard_gates_equal_pruned_inference(name: str, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With gates driven to 0 and 1, the student is the official pruned model at every decoding step."""
    family = name.split("/")[0]
    expected = golden_tensors(f"{name}/outputs.safetensors")
    batch = with_answer(name, generated(expected, "generated_ids"))
    module = GlimpseModule.from_official(golden_path(f"{family}/new_modules"))
    score, seen = module.score_rows, {}
    monkeypatch.setattr(module, "score_rows", lambda *args: 1e6 * score(*args))

    def spy(student: Tensor, teacher: Tensor) -> Tensor:
        seen.update(student=student.detach(), teacher=teacher)
        return student.sum() * 0

    monkeypatch.setattr(losses, "distillation_loss", spy)
    base = load_base(family, attention)
    step(base, module, DISTILL, batch, None)
    rows = len(batch["input_ids"])
    assert_close(seen["student"].unflatten(0, (rows, -1)), generated(expected, "generate.logits"))
    assert_close(seen["teacher"].unflatten(0, (rows, -1))[:, 0], expected["unpruned.first_logits"])
    with GlimpseForTraining(base, module, DISTILL) as model:
        out = model.eval()(**batch)
    assert out["accuracy"].tolist() == [1.0] * rows
    unpruned = (expected["unpruned.generated_ids"] == generated(expected, "generated_ids")).all(1)
    assert out["accuracy_unpruned"].tolist() == unpruned.float().tolist()
    kept = [expected[f"keep_mask.{b}"].float().mean().item() for b in range(rows)]
    assert out["kept"].tolist() == pytest.approx(kept)


@pytest.fixture(scope="module")
def qwen() -> nn.Module:
    return load_base("gp_qwen")


def fresh(base: nn.Module, **overrides: object) -> GlimpseModule:
    torch.manual_seed(3)
    return GlimpseModule.for_model(base, **{"le_dropout": 0.0, **overrides})


@pytest.mark.parametrize("family", ["gp_qwen", "gp_llava"])
def test_distillation_does_not_depend_on_the_backend(family: str) -> None:
    """The gradient flows through the attention bias, which backends treat differently."""
    batch = with_answer(f"{family}/batch2")
    results = []
    for attention in ("sdpa", "eager"):
        base = load_base(family, attention)
        results.append(step(base, fresh(base), DISTILL, batch, None))
    (a, grads_a), (b, grads_b) = results
    assert a.terms["kl_loss"] > 1e-4
    assert_close(a.total, b.total, atol=1e-6)
    for name, gradient in grads_a.items():
        assert_gradient_close(name, grads_b[name], gradient, rtol=1e-3)
    assert any(g.abs().max() > 0 for n, g in grads_a.items() if n.startswith("vip"))
    assert grads_a["embeddings"].abs().max() > 0


def test_distillation_gradient_by_finite_differences(qwen: nn.Module) -> None:
    batch, module = with_answer("gp_qwen/single"), fresh(qwen)
    _, grads = step(qwen, module, DISTILL, batch, None)
    weight = module.vip.attn_out_projs[str(len(module.vip.layers) - 1)].weight
    direction = grads["vip.attn_out_projs.3.weight"] / grads["vip.attn_out_projs.3.weight"].norm()
    with GlimpseForTraining(qwen, module, DISTILL) as model, torch.no_grad():
        values = []
        for sign in (1, -1):
            weight.add_(direction, alpha=sign * 1e-2)
            values.append(model.train().outcome(**batch).total.item())
            weight.sub_(direction, alpha=sign * 1e-2)
    slope = (values[0] - values[1]) / 2e-2
    assert slope == pytest.approx(grads["vip.attn_out_projs.3.weight"].norm().item(), rel=2e-2)


@pytest.mark.parametrize("objective", [Objective(), DISTILL], ids=["boxes", "distillation"])
def test_padding_and_neighbours_do_not_matter(qwen: nn.Module, objective: Objective) -> None:
    """Each row of the padded batch gives the logits that it gives alone."""
    batch, masks, _ = load_step("gp_qwen/train_batch2")
    module, patches = fresh(qwen), 0
    together, _ = step(qwen, module, objective, batch, masks)
    for b, grid in enumerate(batch["image_grid_thw"]):
        valid, count = batch["attention_mask"][b].bool(), int(grid.prod())
        alone = {k: batch[k][b : b + 1, valid] for k in ("input_ids", "attention_mask", "labels")}
        alone |= {"pixel_values": batch["pixel_values"][patches : patches + count], "image_grid_thw": grid[None]}
        patches += count
        outcome, _ = step(qwen, module, objective, alone, [masks[b]])
        assert_close(outcome.logits[0], together.logits[b])


@pytest.mark.parametrize("objective", [Objective(), DISTILL, Objective(distillation=1.0)])
def test_gradient_checkpointing_changes_nothing(qwen: nn.Module, objective: Objective) -> None:
    batch, masks, _ = load_step("gp_qwen/train_batch2")
    module = fresh(qwen)
    plain, grads = step(qwen, module, objective, batch, masks)
    calls = []
    handle = qwen.model.language_model.layers[2].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    prepare = GlimpseForTraining.activation_checkpointing_enable
    saved, again = step(qwen, module, objective, batch, masks, prepare)
    handle.remove()
    passes = 1 + (2 if objective.distillation else 0)  # the teacher's is not recomputed
    assert len(calls) == passes + passes - (1 if objective.distillation else 0)
    assert not any(layer.gradient_checkpointing for layer in qwen.model.language_model.layers)
    assert_close(saved.total, plain.total, atol=1e-6)
    for name, gradient in grads.items():
        assert_gradient_close(name, again[name], gradient, rtol=1e-5)


def test_mixed_objective_is_the_sum(qwen: nn.Module) -> None:
    batch, masks, _ = load_step("gp_qwen/train_batch2")
    module = fresh(qwen)
    boxes, grads_a = step(qwen, module, Objective(), batch, masks)
    soft, grads_b = step(qwen, module, DISTILL, batch, masks)
    both = Objective(distillation=DISTILL.distillation, keep_rate=0.5, keep_target=0.05)
    mixed, grads = step(qwen, module, both, batch, masks)
    assert_close(mixed.total, boxes.total + soft.total, atol=1e-5)
    for name, gradient in grads.items():
        assert_gradient_close(name, grads_a[name] + grads_b[name], gradient)
    assert set(mixed.terms) == set(boxes.terms) | set(soft.terms)


def test_several_images_in_a_prompt_and_several_glimpse_tokens(qwen: nn.Module) -> None:
    batch = with_answer("gp_qwen/two_images")
    total = int((batch["image_grid_thw"].prod(1) // 4).sum())
    module = fresh(qwen, le_length=3, le_layers=(0, 2))
    outcome, grads = step(qwen, module, Objective(), batch, [torch.arange(total) % 5 == 0])
    assert outcome.logits[0].shape == (1, total)
    assert grads["embeddings"].shape == (2, 3, 64)
    assert (grads["embeddings"].abs().amax(-1) > 0).all()
    outcome, grads = step(qwen, module, DISTILL, batch, None)
    assert (grads["embeddings"].abs().amax(-1) > 0).all()


def test_base_model_is_left_alone(qwen: nn.Module) -> None:
    batch, masks, _ = load_step("gp_qwen/train_single")
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    before = qwen(**inputs).logits
    step(qwen, fresh(qwen), Objective(distillation=1.0), batch, masks)
    assert all(p.grad is None for p in qwen.parameters())
    assert torch.equal(qwen(**inputs).logits, before)
    hooked = [m for m in qwen.modules() if m._forward_pre_hooks or m._forward_hooks]
    assert not hooked


def test_evaluation_metrics(qwen: nn.Module) -> None:
    batch, masks, _ = load_step("gp_qwen/train_batch2")
    module = fresh(qwen)
    with GlimpseForTraining(qwen, module) as model:
        out = model.eval()(ref_masks=masks, **batch)
        logits = model.outcome(masks, **batch).logits
    kept = [(row[-1] > 0) for row in logits]
    assert_close(out["kept"], torch.stack([k.float().mean() for k in kept]), atol=1e-6)
    expected = [(k & m).sum() / m.sum() for k, m in zip(kept, masks, strict=True)]
    assert_close(out["recall"], torch.stack(expected), atol=1e-6)


def test_what_cannot_be_trained_is_refused(qwen: nn.Module) -> None:
    batch, masks, _ = load_step("gp_qwen/train_batch2")
    module = fresh(qwen)
    with GlimpseForTraining(qwen, module) as model:
        with pytest.raises(ConfigurationError, match="evidence boxes"):
            model.outcome(**batch)
        no_answer = dict(batch, labels=batch["labels"].clone())
        no_answer["labels"][1] = losses.IGNORE
        with pytest.raises(InputError, match="row 1"):
            model.outcome(masks, **no_answer)
        with pytest.raises(InputError, match="no images"):
            model.outcome(masks, **{k: v for k, v in batch.items() if "pixel" not in k})
        with pytest.raises(ConfigurationError, match="use_reentrant"):
            model.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ConfigurationError, match="reduce_layer"):
        GlimpseForTraining(qwen, fresh(qwen, reduce_layer=5), DISTILL)
    with pytest.raises(ConfigurationError, match="nothing to learn"):
        GlimpseForTraining(qwen, module, Objective(localization=0, language=0))
    with pytest.raises(CheckpointError, match="family"):
        GlimpseForTraining(load_base("gp_llava"), module)


def test_fixtures_cover_both_families() -> None:
    if GOLDEN.exists():
        assert {name.split("/")[0] for name in STEPS} >= {"gp_qwen", "gp_llava"}


@pytest.mark.parametrize("how", ["base in bfloat16", "autocast"])
def test_half_precision(qwen: nn.Module, how: str) -> None:
    batch, masks, _ = load_step("gp_qwen/train_batch2")
    objective = Objective(distillation=1.0)
    exact, grads = step(qwen, fresh(qwen), objective, batch, masks)
    if how == "autocast":
        module = fresh(qwen)
        with torch.autocast("cpu", torch.bfloat16):
            half, rough = step(qwen, module, objective, batch, masks)
    else:
        base = load_base("gp_qwen").bfloat16()
        half, rough = step(base, fresh(base), objective, batch, masks)
    assert half.total.item() == pytest.approx(exact.total.item(), rel=0.05)
    assert rough.keys() == grads.keys()
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in rough.values())
    for name in ("embeddings", "vip.attn_out_projs.3.weight"):
        similarity = torch.cosine_similarity(grads[name].flatten(), rough[name].flatten(), dim=0)
        assert similarity > 0.95, f"{name}: {similarity}"
