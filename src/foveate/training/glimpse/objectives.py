"""The two training objectives: evidence boxes (published) and distillation (needs no boxes).

A step first *looks*: the glimpse token runs through the model and the VIP gives a logit per visual token. The
published losses judge that pass. Distillation adds two: the unpruned answer, and the answer under gates made
from the logits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.core.budget import Keep
from foveate.families.base import Family
from foveate.glimpse.config import GlimpseConfig
from foveate.glimpse.module import GlimpseModule
from foveate.training import losses
from foveate.training.glimpse.forward import EnoughSeen, Gates, Glimpse, run
from foveate.training.glimpse.inputs import Prompt, insert


@dataclass(frozen=True)
class Objective:
    """Weights of the loss terms; a term of weight 0 is not computed.

    Attributes:
        localization: mask loss of the VIP's logits against the evidence boxes.
        language: cross entropy of the answer, predicted with the glimpse token in sight.
        distillation: KL divergence of the softly gated answer from the unpruned one.
        keep_rate: penalty on the expected kept fraction above `keep_target` (with distillation).
        dice, bce: parts of the mask loss.
        official: see `Glimpse.official`.
    """

    localization: float = 1.0
    language: float = 1.0
    distillation: float = 0.0
    keep_rate: float = 1.0
    keep_target: float = 0.1
    dice: float = 1.0
    bce: float = 0.1
    official: bool = False

    @property
    def uses_boxes(self) -> bool:
        return self.localization > 0

    @property
    def supervised(self) -> bool:
        return self.localization > 0 or self.language > 0

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Weighted sum of the loss terms."""
        weights = {
            "le_loss": self.language,
            "loc_loss": self.localization,
            "kl_loss": self.distillation,
            "keep_loss": self.keep_rate,
        }
        return torch.stack([weight * terms[name] for name, weight in weights.items() if name in terms]).sum()


@dataclass(frozen=True)
class Frozen:
    """The base model, as far as a training step needs it."""

    family: Family
    head: nn.Module

    def answers(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions [T, V] for the T answer tokens from hidden states [B, L, D], and the tokens, [T]."""
        rows, columns = (labels != losses.IGNORE).nonzero(as_tuple=True)
        return self.head(hidden[rows, columns - 1]), labels[rows, columns]


def look(
    base: Frozen, module: GlimpseModule, prompt: Prompt, objective: Objective
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """VIP logits of each row, [output rows, N_b], and the language loss if the objective has one.

    The glimpse token stays in sight of the answer, and its output predicts the first answer token; nothing is
    pruned.
    """
    vectors = module.glimpse_vectors()
    longer = insert(prompt, vectors[0])
    only_look = not objective.language
    glimpse = Glimpse(vectors, prompt.first_label, longer, module.config, objective.official, only_look)
    terms = {}
    with contextlib.suppress(EnoughSeen):
        hidden = run(base.family.parts.text, longer, glimpse)
        terms["le_loss"] = losses.language_loss(*base.answers(hidden, longer.labels))
    rows = module.score_rows(glimpse.features, prompt.conds, prompt.grids)
    return list(rows.split(prompt.counts, dim=1)), terms


def located(logits: Sequence[Tensor], masks: Sequence[Tensor], objective: Objective) -> dict[str, Tensor]:
    """Losses against evidence masks, one [N_b] per row in raster order (all images of the row)."""
    dice, bce = losses.dice_loss(logits, masks), losses.bce_loss(logits, masks)
    return {"dice_loss": dice, "bce_loss": bce, "loc_loss": objective.dice * dice + objective.bce * bce}


def distilled(
    base: Frozen, prompt: Prompt, logits: Sequence[Tensor], reduce_layer: int, objective: Objective
) -> dict[str, Tensor]:
    """Match the unpruned answer where visual keys carry the attention bias `log sigmoid(logit)`.

    A logit far above 0 is a kept token, one far below 0 a pruned one.
    """
    text, deciding = base.family.parts.text, [row[-1] for row in logits]
    with torch.no_grad():
        teacher, _ = base.answers(run(text, prompt), prompt.labels)
    gates = gate(prompt, F.logsigmoid(torch.cat(deciding).float()), reduce_layer)
    student, _ = base.answers(run(text, prompt, gates), prompt.labels)
    return {
        "kl_loss": losses.distillation_loss(student, teacher),
        "keep_loss": losses.keep_rate_loss(deciding, objective.keep_target),
    }


def gate(prompt: Prompt, bias: Tensor, reduce_layer: int) -> Gates:
    """Attention masks that weaken visual keys by `bias` [N] where pruning would remove them.

    As at inference: layers after `reduce_layer` see the gated keys only, and so do the answer tokens in the
    earlier layers, whose caches are compacted too. The prompt has been read there before anything is pruned.
    """
    dtype, floor = prompt.embeds.dtype, torch.finfo(prompt.embeds.dtype).min / 2
    columns = torch.arange(prompt.mask.shape[1], device=bias.device)
    seen = prompt.mask.bool()[:, None] & (columns[None] <= columns[:, None])
    # Not -inf: a padding query sees nothing, and its row must stay finite.
    causal = torch.zeros(seen.shape, dtype=dtype, device=bias.device).masked_fill(~seen, floor)[:, None]
    keys = torch.zeros(prompt.mask.shape, device=bias.device).masked_scatter(prompt.visual, bias)
    keys = keys.clamp(min=floor).to(dtype)[:, None, None]
    answering = (columns >= prompt.first_label[:, None])[:, None, :, None]
    return Gates(causal + torch.where(answering, keys, 0), causal + keys, reduce_layer)


def decide(logits: Sequence[Tensor], config: GlimpseConfig) -> list[Tensor]:
    """Keep decision of each prompt at the configured threshold, cap and floor: bool [N_b]."""
    keep = Keep(threshold=config.threshold, floor=config.min_keep, cap=config.max_keep, per="prompt")
    return [keep.choose(row[-1].detach().float().sigmoid()) for row in logits]


@torch.no_grad()
def accuracy(base: Frozen, prompt: Prompt, gates: Gates | None = None) -> Tensor:
    """Whether greedy decoding would give each row's answer, its end included: float [B].

    Teacher-forced: every answer token must be the most probable one after those before it.
    """
    predicted, labels = base.answers(run(base.family.parts.text, prompt, gates), prompt.labels)
    rows, _ = (prompt.labels != losses.IGNORE).nonzero(as_tuple=True)
    wrong = (predicted.argmax(-1) != labels).float()
    return (torch.zeros(len(prompt.labels), device=wrong.device).index_add(0, rows, wrong) == 0).float()


def pruned_accuracy(base: Frozen, prompt: Prompt, keep: Sequence[Tensor], reduce_layer: int) -> Tensor:
    """`accuracy` with the tokens outside `keep` (bool [N_b] per row) pruned after `reduce_layer`: [B]."""
    kept = torch.cat(list(keep))
    bias = torch.zeros(kept.shape, device=kept.device).masked_fill(~kept, -torch.inf)
    return accuracy(base, prompt, gate(prompt, bias, reduce_layer))
