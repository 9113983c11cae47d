"""The two stages of a recipe: the tower alone with dense labels, then everything on questions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.scenes import NEEDS
from recipes.zoo.attention_loss import attention_loss
from recipes.zoo.batches import Asked, Batch, question, render
from recipes.zoo.config import BatchConfig, StageConfig, ZooConfig
from recipes.zoo.encoders import Encoder
from recipes.zoo.films import question_films, render_films
from recipes.zoo.forward import read
from recipes.zoo.heads import DenseHeads, Metrics
from recipes.zoo.pages import render_pages
from recipes.zoo.prompts import IGNORE, Prompts


class TrainingStage(Protocol):
    """What the trainer needs of a stage."""

    name: str
    config: StageConfig

    def modules(self) -> dict[str, nn.Module]:
        """What is trained and checkpointed; the keys prefix parameter names."""

    def loss(self, step: int, rank: int, world: int) -> tuple[Tensor, Metrics]:
        """Loss of this process's batch of this step, and numbers to log."""


def pick(config: StageConfig, name: str, step: int) -> BatchConfig:
    """The kind of batch of a step: the same in every process, so that none waits for another."""
    progress = step / config.steps
    batches = next(phase for phase in config.phases if progress < phase.until).batches
    return Random(f"{name}:{step}").choices(batches, [b.weight for b in batches])[0]


def first_index(seed: int, part: int, step: int, rank: int, world: int) -> int:
    """Index of the first training scene of a batch; no two batches share a scene, nor do two parts or seeds.

    `part` is 0 for stage L and counts the parts of stage V from 1.
    """
    return (10 * seed + part) * 10**9 + (step * world + rank) * 64


def reach(config: StageConfig, layers: int, kind: str, rng: Random) -> range:
    """The layers in which one question of type `kind` sees the image."""
    if rng.random() >= config.reach_share:
        return range(layers)
    first, end = config.reach_windows.get(kind, (0, layers))
    length = rng.randint(min(config.reach_layers, end - first), end - first)
    start = rng.randint(first, end - length)
    return range(start, start + length)


def reaches(config: StageConfig, layers: int, asked: Asked, step: int) -> Tensor | None:
    """Which questions see the image in which layers, bool `[layers, B, K]`; None: all in all of them."""
    if not config.reach_share:
        return None
    rng = Random(f"reach:{step}")
    seen = torch.zeros(layers, len(asked.questions), config.questions, dtype=torch.bool)
    for b, questions in enumerate(asked.questions):
        for i, q in enumerate(questions):
            run = reach(config, layers, q.type, rng)
            seen[run.start : run.stop, b, i] = True
    return seen


def low_precision(device: torch.device) -> AbstractContextManager[Any]:
    """bf16 autocast on CPU and GPU."""
    return torch.autocast(device.type, torch.bfloat16)


class VisionStage:
    """Dense labels on every visual token: objects, characters, neighbours; and the family's own objective.

    `part` counts from 1.
    """

    def __init__(self, config: ZooConfig, part: int, encoder: Encoder, heads: DenseHeads) -> None:
        self.part, self.name = part, f"vision{part}"
        self.config, self.seed = config.vision[part - 1], config.seed
        self.encoder, self.heads = encoder, heads

    def modules(self) -> dict[str, nn.Module]:
        return self.encoder.modules() | {"heads": self.heads}

    def loss(self, step: int, rank: int, world: int) -> tuple[Tensor, Metrics]:
        kind = pick(self.config, self.name, step)
        first = first_index(self.seed, self.part, step, rank, world)
        batch = render(first, kind, self.encoder.token)
        with low_precision(batch.pixels.device):
            features = self.encoder(batch.pixels, step, self.config.forced)
            family, more = self.encoder.family_loss(batch.pixels, batch.scenes, features, self.config.distil_weight)
        objects, metrics = self.heads.object_loss(features, batch.objects)
        characters, metrics["characters"] = self.heads.character_loss(features, batch.characters)
        loss = objects + 2 * characters + family
        if kind.pages:
            pixels, labels = render_pages(first, kind.pages, self.encoder.token)
            with low_precision(pixels.device):
                features = self.encoder(pixels, step + 1, self.config.forced)
                family, _ = self.encoder.family_loss(pixels, [], features, self.config.distil_weight)
            page_loss, metrics["pages"] = self.heads.character_loss(features, labels)
            loss = loss + 3 * page_loss + family
        return loss, metrics | more


@dataclass(frozen=True)
class Said:
    """Logits and labels `[B, K, Lq, ...]`, attention of the probed heads (or None), image tokens of the prefix."""

    logits: Tensor
    labels: Tensor
    seen: Tensor | None
    visual: Tensor


class LanguageStage:
    """Answers to K questions that share one visual prefix."""

    name = "language"

    def __init__(self, config: ZooConfig, model: Any, encoder: Encoder, heads: DenseHeads, prompts: Prompts) -> None:
        self.config, self.model, self.heads, self.seed = config.language, model, heads, config.seed
        self.encoder, self.prompts = encoder, prompts

    def modules(self) -> dict[str, nn.Module]:
        return self.encoder.modules() | {"text": self.model.model.language_model, "heads": self.heads}

    def loss(self, step: int, rank: int, world: int) -> tuple[Tensor, Metrics]:
        kind = pick(self.config, self.name, step)
        first = first_index(self.seed, 0, step, rank, world)
        progress = step / self.config.steps
        frozen = progress < self.config.frozen_until
        for parameter in self.encoder.modules()["tower"].parameters():
            parameter.requires_grad_(not frozen)
        if kind.shows == "videos":
            return self._video_loss(kind, first, step)
        batch = render(first, kind, self.encoder.token)
        asked = question(batch, first, self.config.questions, kind.images_per_prompt, self.config.type_weights)
        fade = max(0.0, 1 - progress / self.config.attention_until) if self.config.attention_until else 0.0
        with low_precision(batch.pixels.device):
            features = self.encoder(batch.pixels, step)
            said = self.answer(features, asked, kind.images_per_prompt, fade > 0, self._reach(asked, step))
        loss, metrics = self._answer_loss(said, asked)
        if said.seen is not None:
            counting = torch.tensor([[NEEDS[q.type] == "global" for q in qs] for qs in asked.questions])
            known = said.labels != IGNORE
            looked = attention_loss(said.seen, said.visual, asked.evidence, asked.places, counting, known)
            loss = loss + self.config.attention_weight * fade * looked
            metrics["attention"] = looked.item()
        if not frozen and self.config.dense_weight:
            loss = loss + self.config.dense_weight * self._dense(features, batch, metrics)
        return loss, metrics

    def _video_loss(self, kind: BatchConfig, first: int, step: int) -> tuple[Tensor, Metrics]:
        batch = render_films(first, kind)
        asked = question_films(batch, first, self.config.questions, self.config.type_weights)
        with low_precision(batch.pixels.device):
            features = self.encoder(batch.pixels, step)
            said = self.answer(features, asked, 1, False, self._reach(asked, step), batch.times)
        loss, metrics = self._answer_loss(said, asked)
        if self.config.dense_weight:
            objects, _ = self.heads.object_loss(features, batch.objects)
            ways, metrics["ways"] = self.heads.way_loss(features, batch.ways)
            loss = loss + self.config.dense_weight * (objects + 2 * ways)
        return loss, {f"video {name}": value for name, value in metrics.items()}

    def _reach(self, asked: Asked, step: int) -> Tensor | None:
        return reaches(self.config, len(self.model.model.language_model.layers), asked, step)

    def _answer_loss(self, said: Said, asked: Asked) -> tuple[Tensor, Metrics]:
        known = said.labels != IGNORE
        each = F.cross_entropy(said.logits[known].float(), said.labels[known], reduction="none")
        weight = self._weights(asked)[..., None].expand(said.labels.shape)[known]
        metrics = {"answer": each.mean().item()} | exact_match(said.logits, said.labels, asked)
        return (weight * each).sum() / weight.sum(), metrics

    def _weights(self, asked: Asked) -> Tensor:
        """What a token of each question's answer counts, `[B, K]`."""
        weights = self.config.loss_weights
        return torch.tensor([[weights.get(q.type, 1.0) for q in questions] for questions in asked.questions])

    def _dense(self, features: Tensor, batch: Batch, metrics: Metrics) -> Tensor:
        objects, _ = self.heads.object_loss(features, batch.objects)
        characters, metrics["characters"] = self.heads.character_loss(features, batch.characters)
        with low_precision(batch.pixels.device):
            family, more = self.encoder.family_loss(batch.pixels, batch.scenes, features, self.config.distil_weight)
        metrics.update(more)
        return objects + 2 * characters + family

    def answer(
        self,
        features: Tensor,
        asked: Asked,
        per_prompt: int,
        probe: bool,
        reached: Tensor | None = None,
        times: Sequence[int] = (),
    ) -> Said:
        """What is said to K questions a prompt.

        Args:
            features: of all images `[B * per_prompt, rows, columns, C]`, or of all steps of videos at `times`.
            reached: in which layers which questions see the image, bool `[layers, B, K]`; None: in all.
        """
        ids, labels = self.prompts.blocks(asked.texts)
        b, k, length = ids.shape
        rows, columns, width = features.shape[1:]
        layout = self.prompts.layout(per_prompt, rows, columns, k, length, times)
        text = self.model.model.language_model
        words = text.embed_tokens.weight
        prefix = words[layout.ids].to(features.dtype).repeat(b, 1, 1)
        prefix[:, layout.visual] = features.reshape(b, -1, width)
        x = torch.cat([prefix, words[ids.flatten(1)].to(features.dtype)], 1)
        positions = layout.positions[:, None] if self.encoder.mrope else layout.flat_positions(k, length)
        layer = self.config.attention_layer if probe else -1
        hidden = None if reached is None else (layout.visual, ~reached)
        states, seen = read(text, x, positions, len(layout.ids), k, layer, hidden)
        logits = F.linear(states[:, len(layout.ids) :].view(b, k, length, -1), words.to(states.dtype))
        if seen is not None:
            seen = seen[:, list(self.config.attention_heads)].float().mean(1)
        return Said(logits, labels, seen, layout.visual)


@torch.no_grad()
def exact_match(logits: Tensor, labels: Tensor, asked: Asked) -> Metrics:
    """Teacher-forced exact match by type: equal to greedy decoding's."""
    right = ((logits.argmax(-1) == labels) | (labels == IGNORE)).all(-1)
    hits: dict[str, list[float]] = {}
    for row, questions in zip(right.tolist(), asked.questions, strict=True):
        for hit, q in zip(row, questions, strict=True):
            hits.setdefault(f"match {q.type}", []).append(float(hit))
    return {name: sum(values) / len(values) for name, values in hits.items()}
