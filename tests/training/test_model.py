"""The training wrapper: what it leaves alone, what it measures, what it refuses, in which precisions it works."""

import pytest
import torch
from torch import nn

from foveate.errors import CheckpointError, ConfigurationError, InputError
from foveate.training import losses
from foveate.training.glimpse.model import GlimpseForTraining
from foveate.training.glimpse.objectives import Objective
from tests.golden_files import assert_close

from .steps import DISTILL, fresh, load_base, load_step, step


@pytest.fixture(scope="module")
def qwen() -> nn.Module:
    return load_base("gp_qwen")


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
    last = max(name for name in grads if name.startswith("vip.attn_out_projs") and name.endswith("weight"))
    for name in ("embeddings", last):
        similarity = torch.cosine_similarity(grads[name].flatten(), rough[name].flatten(), dim=0)
        assert similarity > 0.95, f"{name}: {similarity}"
