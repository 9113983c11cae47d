"""The two training objectives: evidence boxes (published) and distillation (needs no boxes).

A step reads its prompts once. Behind them it first *looks*: the glimpse token runs on the keys that the prompt left,
and the VIP gives a logit per visual token. The published losses judge that. Distillation adds the answer without gates
and the answer under gates made from the logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from foveate.core.budget import Keep
from foveate.errors import ConfigurationError
from foveate.glimpse.config import GlimpseConfig, check_kind
from foveate.glimpse.module import GlimpseModule
from foveate.training import losses
from foveate.training.glimpse.inputs import PromptBatch
from foveate.training.glimpse.passes import LanguageModel
from foveate.training.glimpse.plans import FLOOR, Gated, LayersDone, Look, Read


@dataclass(frozen=True)
class Objective:
    """Weights of the loss terms; a term of weight 0 is not computed.

    Attributes:
        localization: mask loss of the VIP's logits against the evidence boxes.
        language: cross entropy of the answer, predicted with the glimpse token in sight.
        distillation: KL divergence of the softly gated answer from the unpruned one.
        keep_rate: penalty on the distance of the expected kept fraction from `keep_target` (with distillation).
        gate_temperature: of the distribution that gates are drawn from in distillation, see `gates`.
        dice, bce: parts of the mask loss.
        official: see `Look.features`.
    """

    localization: float = 1.0
    language: float = 1.0
    distillation: float = 0.0
    keep_rate: float = 1.0
    keep_target: float = 0.1
    dice: float = 1.0
    bce: float = 0.1
    official: bool = False
    gate_temperature: float = 0.67

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            check_kind(one.name, value, str(one.type))
            if value < 0 or value == float("inf"):
                raise ConfigurationError(f"{one.name}={value!r}: expected a finite number that is not negative")

    @property
    def uses_boxes(self) -> bool:
        return self.localization > 0

    @property
    def supervised(self) -> bool:
        return self.localization > 0 or self.language > 0

    def total(self, terms: Mapping[str, Tensor], shares: Shares | None = None) -> Tensor:
        """Weighted sum of the loss terms.

        Args:
            shares: how much the means of this micro-batch count; None: it is the whole batch.
        """
        shares = shares or Shares()
        weights = {
            "le_loss": self.language * shares.tokens,
            "loc_loss": self.localization * shares.samples,
            "kl_loss": self.distillation * shares.tokens,
            "keep_loss": self.keep_rate * shares.samples,
        }
        return torch.stack([weight * terms[name] for name, weight in weights.items() if name in terms]).sum()


TOKEN_MEANS = ("le_loss", "kl_loss")
"""Terms that are means over answer tokens; the others are means over samples."""


@dataclass(frozen=True)
class Shares:
    """What a micro-batch is of its global batch, times the number of micro-batches of which the mean is taken.

    Rows differ in the number of answer tokens: with these weights, the mean of the micro-batches is that of the global
    batch, however it is divided among micro-batches and processes.
    """

    tokens: float = 1.0
    samples: float = 1.0


def look(
    model: LanguageModel, module: GlimpseModule, prompts: PromptBatch, read: Read, objective: Objective
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """VIP logits of each row, [output rows, N_b], and the language loss if the objective has one.

    The glimpse token stays in sight of the answer, and its output predicts the first answer token; nothing is
    pruned.
    """
    vectors = module.glimpse_vectors()
    answers = objective.language > 0 or objective.official
    embeds = vectors[0].to(prompts.answers.dtype).expand(len(prompts.labels), -1, -1)
    if answers:
        embeds = torch.cat([embeds, prompts.answers], dim=1)
    plan = Look(vectors, module.config, objective.language > 0)
    terms = {}
    with suppress(LayersDone):
        hidden = model.behind(read, prompts, embeds, plan, glimpses=True, answers=answers)
        if objective.language:
            predicting = hidden[:, prompts.glimpses - 1 : -1]
            terms["le_loss"] = losses.language_loss(*model.predictions(predicting, prompts.labels))
    features = plan.features(prompts, objective.official)
    rows = module.score_rows(features, prompts.conds, prompts.grids)
    return list(rows.split(prompts.counts, dim=1)), terms


def located(logits: Sequence[Tensor], masks: Sequence[Tensor], objective: Objective) -> dict[str, Tensor]:
    """Losses against evidence masks, one [N_b] per row in raster order (all images of the row)."""
    dice, bce = losses.dice_loss(logits, masks), losses.bce_loss(logits, masks)
    return {"dice_loss": dice, "bce_loss": bce, "loc_loss": objective.dice * dice + objective.bce * bce}


def distilled(
    model: LanguageModel, prompts: PromptBatch, read: Read, logits: Sequence[Tensor], objective: Objective, drawn: bool
) -> dict[str, Tensor]:
    """Match the unpruned answer where visual keys carry the logarithms of `gates` as attention bias.

    Args:
        drawn: gates are drawn (training), not where they most probably are (evaluation).
    """
    deciding = [row[-1] for row in logits]
    teacher, _ = unpruned(model, prompts, read)
    student, _ = gated(model, prompts, read, [gates(row, objective.gate_temperature, drawn) for row in deciding])
    return {
        "kl_loss": losses.distillation_loss(student, teacher),
        "keep_loss": losses.keep_rate_loss(deciding, objective.keep_target),
        "expected": losses.expected_share(deciding).mean(),
    }


def gates(logits: Tensor, temperature: float, drawn: bool) -> Tensor:
    """Logarithms `[N]` of gates in (0, 1), drawn from the binary concrete distribution (arXiv 1611.00712).

    A gate is near 1 with probability sigmoid(logit), else near 0, so that a token that is needed must be kept for
    certain. At temperature 0 the gate is sigmoid(logit) itself: then an image whose gates are all as low as the
    keep-rate target passes nearly whole, since attention compares keys with each other, and no token is ever kept.
    """
    logits = logits.float()
    if temperature == 0:
        return F.logsigmoid(logits)
    if drawn:
        share = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
        logits = logits + share.log() - (-share).log1p()
    return F.logsigmoid(logits / temperature)


def unpruned(model: LanguageModel, prompts: PromptBatch, read: Read) -> tuple[Tensor, Tensor]:
    """Logits [T, V] of the T answer tokens without gates, and the tokens."""
    assert read.hidden is not None
    return model.predictions(read.hidden[:, prompts.length - 1 : -1], prompts.labels)


def gated(model: LanguageModel, prompts: PromptBatch, read: Read, bias: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Logits [T, V] of the T answer tokens where visual keys carry a bias, and the tokens.

    As at inference: layers after the pruning layer see the gated keys only, and so do the answer tokens in the earlier
    layers, whose caches are compacted too. The prompt has been read there before anything is pruned.

    Args:
        bias: [N_b] for each row, added to the attention logits of its visual tokens.
    """
    rows = torch.repeat_interleave(torch.tensor(prompts.counts)).to(bias[0].device)
    places = rows, torch.cat(prompts.columns).to(rows.device)
    keys = bias[0].new_zeros(len(prompts.labels), prompts.length).index_put(places, torch.cat(list(bias)))
    start = prompts.length + prompts.glimpses
    valid = torch.cat([prompts.valid[:, : prompts.length], prompts.valid[:, start:]], dim=1)
    plan = Gated(keys.clamp(min=FLOOR), valid, read.late)
    hidden = model.behind(read, prompts, prompts.answers, plan, glimpses=False, answers=True)
    plan.check(len(model.family.parts.layers))
    if read.late.entering is None:  # nothing is left to run behind the pruning layer: answers alone came out
        assert read.hidden is not None
        hidden = torch.cat([read.hidden[:, : prompts.length], hidden], dim=1)
    return model.predictions(hidden[:, prompts.length - 1 : -1], prompts.labels)


def decide(logits: Sequence[Tensor], config: GlimpseConfig) -> list[Tensor]:
    """Keep decision of each prompt at the configured threshold, cap and floor: bool [N_b]."""
    keep = Keep(threshold=config.threshold, floor=config.min_keep, cap=config.max_keep, per="prompt")
    return [keep.choose(row[-1].detach().float().sigmoid()) for row in logits]


def accuracy(predicted: Tensor, tokens: Tensor, prompts: PromptBatch) -> Tensor:
    """Whether greedy decoding would give each row's answer, its end included: float [B].

    Teacher-forced: every answer token must be the most probable one after those before it.
    """
    rows, _ = (prompts.labels != losses.IGNORE).nonzero(as_tuple=True)
    wrong = (predicted.argmax(-1) != tokens).float()
    return (torch.zeros(len(prompts.labels), device=wrong.device).index_add(0, rows, wrong) == 0).float()


@torch.no_grad()
def accuracies(model: LanguageModel, prompts: PromptBatch, read: Read, keep: Sequence[Tensor]) -> dict[str, Tensor]:
    """`accuracy` of each row, [B], with the tokens outside `keep` (bool [N_b] per row) pruned, and unpruned."""
    bias = [torch.zeros(own.shape, device=own.device).masked_fill(~own, FLOOR) for own in keep]
    return {
        "accuracy": accuracy(*gated(model, prompts, read, bias), prompts),
        "accuracy_unpruned": accuracy(*unpruned(model, prompts, read), prompts),
    }
