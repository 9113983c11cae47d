"""The two training objectives: evidence boxes (published) and distillation (needs no boxes)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.core.family import Family
from foveate.glimpse import losses
from foveate.glimpse.module import GlimpseModule
from foveate.glimpse.train.forward import Glimpse, run
from foveate.glimpse.train.inputs import Prompt, insert


@dataclass(frozen=True)
class Objective:
    """Weights of the loss terms; a term of weight 0 is not computed.

    Attributes:
        localization: mask loss of the VIP's logits against the evidence boxes.
        language: cross entropy of the answer, predicted with the glimpse token in sight.
        distillation: KL divergence of the answer under soft gating from the answer of the unpruned model.
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


@dataclass
class Outcome:
    """Loss terms (unweighted), their weighted sum, and the logits they came from.

    `logits[b]` is [rows, N_b] for the image tokens of row b; the last row decides.
    """

    terms: dict[str, Tensor]
    total: Tensor
    logits: list[Tensor]


@dataclass(frozen=True)
class Frozen:
    """The base model, as far as a training step needs it."""

    family: Family
    head: nn.Module

    def logits(self, hidden: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Vocabulary logits [T, V] at the given places of hidden states [B, L, D]."""
        return self.head(hidden[rows, columns])


def supervised(
    base: Frozen, module: GlimpseModule, prompt: Prompt, masks: Sequence[Tensor] | None, objective: Objective
) -> Outcome:
    """The published step: the glimpse token stays in sight of the answer, nothing is pruned.

    Args:
        masks: evidence masks per row, [N_b] in raster order (all images of the row); None without boxes.
    """
    vectors = module.glimpse_vectors()
    longer = insert(prompt, vectors[0], shift_positions=True)
    glimpse = Glimpse(vectors, prompt.first_label, longer, module.config, objective.official)
    hidden = run(base.family.parts.text, longer, glimpse=glimpse)
    logits = _score(module, glimpse)
    terms: dict[str, Tensor] = {}
    if objective.language:
        rows, columns = (longer.labels != losses.IGNORE).nonzero(as_tuple=True)
        predicted = base.logits(hidden, rows, columns - 1)
        terms["le_loss"] = losses.language_loss(predicted, longer.labels[rows, columns])
    if objective.localization and masks is not None:
        terms["dice_loss"] = losses.dice_loss(logits, masks)
        terms["bce_loss"] = losses.bce_loss(logits, masks)
        terms["loc_loss"] = objective.dice * terms["dice_loss"] + objective.bce * terms["bce_loss"]
    weights = {"le_loss": objective.language, "loc_loss": objective.localization}
    return Outcome(terms, _weigh(terms, weights), logits)


def distilled(base: Frozen, module: GlimpseModule, prompt: Prompt, objective: Objective) -> Outcome:
    """Match the unpruned answers while layers after K see visual key i with bias `log sigmoid(logit_i)`.

    The glimpse token sees the prompt and is seen by nobody, and the answer keeps its positions, as at
    inference. A logit far above 0 is a kept token, one far below 0 a pruned one.
    """
    text, rows, columns = base.family.parts.text, *(prompt.labels != losses.IGNORE).nonzero(as_tuple=True)
    with torch.no_grad():
        teacher = base.logits(run(text, prompt), rows, columns - 1)
    vectors = module.glimpse_vectors()
    longer = insert(prompt, vectors[0], shift_positions=False)
    mask, logits = hiding_mask(longer, prompt.first_label, len(vectors[0])), list[Tensor]()

    def late_mask(glimpse: Glimpse) -> Tensor:
        logits.extend(_score(module, glimpse))
        gate = F.logsigmoid(torch.cat([row[-1] for row in logits]).float())
        bias = torch.zeros(longer.mask.shape, device=gate.device).masked_scatter(longer.visual, gate)
        return mask + bias.to(mask.dtype)[:, None, None]

    glimpse = Glimpse(vectors, prompt.first_label, longer, module.config, late_mask=late_mask)
    hidden = run(text, longer, mask, glimpse)
    # The last prompt token stays in front of the glimpse tokens; what it predicts does not move.
    moved = columns - 1 + len(vectors[0]) * (columns > prompt.first_label[rows])
    student = base.logits(hidden, rows, moved)
    terms = {
        "kl_loss": losses.distillation_loss(student, teacher),
        "keep_loss": losses.keep_rate_loss([row[-1] for row in logits], objective.keep_target),
    }
    weights = {"kl_loss": objective.distillation, "keep_loss": objective.keep_rate}
    return Outcome(terms, _weigh(terms, weights), logits)


def hiding_mask(prompt: Prompt, first: Tensor, length: int) -> Tensor:
    """Additive mask [B, 1, L, L]: causal, without padding, glimpse tokens seen by glimpse tokens only."""
    columns = torch.arange(prompt.mask.shape[1], device=first.device)
    probe = (columns >= first[:, None]) & (columns < first[:, None] + length)
    seen = prompt.mask.bool()[:, None] & (columns[None, :] <= columns[:, None])
    seen &= probe[:, :, None] | ~probe[:, None, :]
    dtype = prompt.embeds.dtype
    # Not -inf: a padding query sees nothing, and its row must stay finite.
    return torch.zeros(seen.shape, dtype=dtype, device=first.device).masked_fill(~seen, torch.finfo(dtype).min / 2)[
        :, None
    ]


def _score(module: GlimpseModule, glimpse: Glimpse) -> list[Tensor]:
    """VIP output rows [rows, N_b] of each prompt."""
    prompt = glimpse.prompt
    rows = module.score_rows(glimpse.features, prompt.conds, prompt.grids)
    return list(rows.split(prompt.counts, dim=1))


def _weigh(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    parts = [weight * terms[name] for name, weight in weights.items() if name in terms]
    return torch.stack([part.float() for part in parts]).sum()
