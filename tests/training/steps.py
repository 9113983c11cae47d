"""Training steps on the fixtures' base models."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from foveate.glimpse import GlimpseModule
from foveate.training import losses
from foveate.training.glimpse.model import GlimpseForTraining, Outcome
from foveate.training.glimpse.objectives import Objective
from tests.golden_files import golden_path, golden_tensors

INPUTS = ("input_ids", "attention_mask", "labels", "mm_token_type_ids", "pixel_values", "image_grid_thw")
DISTILL = Objective(localization=0, language=0, distillation=1.0, keep_rate=0.5, keep_target=0.05, gate_temperature=0)


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
) -> tuple[Outcome, dict[str, Tensor]]:
    module.zero_grad()
    module.dropout.p = 0.0  # so the fixtures were made
    with GlimpseForTraining(base, module, objective) as model:
        prepare(model)
        outcome = model.train().outcome(masks, **batch)
        outcome.total.backward()
    return outcome, gradients(module)


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


def fresh(base: nn.Module, **overrides: object) -> GlimpseModule:
    torch.manual_seed(3)
    return GlimpseModule.for_model(base, **{"le_dropout": 0.0, **overrides})
