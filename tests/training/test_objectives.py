"""The training steps on stock models: against the official code, and against pruned inference."""

import pytest
import torch
from torch import Tensor, nn

from foveate.glimpse import load_official
from foveate.training import losses
from foveate.training.glimpse.model import GlimpseForTraining
from foveate.training.glimpse.objectives import Objective
from tests.golden_files import GOLDEN, assert_close, assert_gradient_close, golden_cases, golden_path, golden_tensors

from .steps import DISTILL, fresh, load_base, load_step, step, with_answer

STEPS = golden_cases("gp_*/train_*")
PROMPTS = [
    name for name in golden_cases("gp_*/*/outputs.safetensors") if "variants" not in name and "train_" not in name
]
OFFICIAL_NAMES = {"attn_fuser": "vip", "learnable_embeddings": "embeddings", "le_proj": "projection", "le_norm": "norm"}


@pytest.mark.parametrize("name", STEPS)
def test_supervised_step_is_the_official_one(name: str) -> None:
    family = name.split("/")[0]
    batch, masks, expected = load_step(name)
    module = load_official(golden_path(f"{family}/new_modules"))
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
    module = load_official(golden_path(f"{name.split('/')[0]}/new_modules"))
    base = load_base(name.split("/")[0])
    outcome, _ = step(base, module, Objective(), batch, masks)
    assert not torch.allclose(outcome.logits[0], expected["vip_logits.0"], atol=1e-3)
    answer = batch["labels"] != losses.IGNORE
    other = dict(batch, input_ids=torch.where(answer, (batch["input_ids"] + 7) % 300, batch["input_ids"]))
    changed, _ = step(base, module, Objective(), other, masks)
    assert_close(changed.logits[0], outcome.logits[0], atol=1e-5)


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
    module = load_official(golden_path(f"{family}/new_modules"))
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
    last = str(len(module.vip.layers) - 1)
    weight, gradient = module.vip.attn_out_projs[last].weight, grads[f"vip.attn_out_projs.{last}.weight"]
    direction = gradient / gradient.norm()
    with GlimpseForTraining(qwen, module, DISTILL) as model, torch.no_grad():
        values = []
        for sign in (1, -1):
            weight.add_(direction, alpha=sign * 1e-2)
            values.append(model.train().outcome(**batch).total.item())
            weight.sub_(direction, alpha=sign * 1e-2)
    slope = (values[0] - values[1]) / 2e-2
    assert slope == pytest.approx(gradient.norm().item(), rel=2e-2)


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


@pytest.mark.parametrize("objective", [Objective(), DISTILL, Objective(distillation=1.0, gate_temperature=0.0)])
def test_gradient_checkpointing_changes_nothing(qwen: nn.Module, objective: Objective) -> None:
    """What runs behind the pruning layer with whole prompts is run again, and only that."""
    batch, masks, _ = load_step("gp_qwen/train_batch2")
    module = fresh(qwen)
    layers = qwen.model.language_model.layers
    early, late = module.config.reduce_layer, module.config.reduce_layer + 1
    counts = {early: [0, 0], late: [0, 0]}
    results = []
    for round_, prepare in enumerate((lambda model: None, GlimpseForTraining.activation_checkpointing_enable)):
        handles = []
        for number, count in counts.items():

            def hook(*_: object, count: list[int] = count, round_: int = round_) -> None:
                count[round_] += 1

            handles.append(layers[number].mlp.register_forward_pre_hook(hook))
        results.append(step(qwen, module, objective, batch, masks, prepare))
        for handle in handles:
            handle.remove()
    assert counts[early][1] == counts[early][0]
    assert counts[late][1] == counts[late][0] + (1 if objective.distillation else 0)
    assert not any(layer.gradient_checkpointing or layer.training for layer in layers)
    (plain, grads), (saved, again) = results
    assert_close(saved.total, plain.total, atol=1e-6)
    for name, gradient in grads.items():
        assert_gradient_close(name, again[name], gradient, rtol=1e-5)


def test_mixed_objective_is_the_sum(qwen: nn.Module) -> None:
    batch, masks, _ = load_step("gp_qwen/train_batch2")
    module = fresh(qwen)
    boxes, grads_a = step(qwen, module, Objective(), batch, masks)
    soft, grads_b = step(qwen, module, DISTILL, batch, masks)
    both = Objective(distillation=DISTILL.distillation, keep_rate=0.5, keep_target=0.05, gate_temperature=0.0)
    mixed, grads = step(qwen, module, both, batch, masks)
    assert_close(mixed.total, boxes.total + soft.total, atol=1e-5)
    for name, gradient in grads.items():
        assert_gradient_close(name, grads_a[name] + grads_b[name], gradient)
    assert set(mixed.terms) == set(boxes.terms) | set(soft.terms)


def test_several_images_in_a_prompt_and_several_glimpse_tokens(qwen: nn.Module) -> None:
    batch = with_answer("gp_qwen/two_images")
    totals = (batch["input_ids"] == qwen.config.image_token_id).sum(1).tolist()
    module = fresh(qwen, le_length=3, le_layers=(0, 1))
    masks = [torch.arange(total) % 5 == 0 for total in totals]
    outcome, grads = step(qwen, module, Objective(), batch, masks)
    assert [tuple(row.shape) for row in outcome.logits] == [(1, total) for total in totals]
    assert grads["embeddings"].shape == (2, 3, qwen.config.text_config.hidden_size)
    assert (grads["embeddings"].abs().amax(-1) > 0).all()
    outcome, grads = step(qwen, module, DISTILL, batch, None)
    assert (grads["embeddings"].abs().amax(-1) > 0).all()


def test_fixtures_cover_both_families() -> None:
    if GOLDEN.exists():
        assert {name.split("/")[0] for name in STEPS} >= {"gp_qwen", "gp_llava"}
