"""What differs between the families while a tower is trained: its forward pass and its own objectives."""

from __future__ import annotations

from random import Random
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from foveate.scenes import Scene
from recipes.zoo import llava, qwen
from recipes.zoo.forward import WINDOW
from recipes.zoo.heads import Metrics
from recipes.zoo.presence import THINGS, presence

# What a language model starts from. Its layers write at scales of ten and more within minutes of Muon: features
# of scale one are swamped by what layer 0 adds to them, and nothing can be read off them any more.
VISUAL_RMS = 6.0


class Encoder(Protocol):
    """A tower with its projector. `token` is the width of a visual token in pixels."""

    token: int
    mrope: bool

    def modules(self) -> dict[str, nn.Module]:
        """What is trained of it, by part."""

    def __call__(self, pixels: Tensor, step: int, forced: bool = False) -> Tensor:
        """Pixels `[B, H, W, 3]` -> what the language model reads, `[B, rows, columns, C]`.

        `forced` feeds every layer what the teacher's block reads.
        """

    def last_layer(self) -> nn.Linear:
        """The linear layer that gives the features."""

    def family_loss(
        self, pixels: Tensor, scenes: list[Scene], features: Tensor, distil: float
    ) -> tuple[Tensor, Metrics]:
        """The family's own objective, right after a call on `pixels`, which show `scenes` (or pages: none).

        `distil` is the weight of the teacher's features, where there is a teacher.
        """


@torch.no_grad()
def scale_features(encoder: Encoder) -> None:
    """Scales the projector's last layer so that its features have an RMS of `VISUAL_RMS`."""
    features = encoder(qwen.sample_pixels(8, 336), 0)
    factor = VISUAL_RMS / features.pow(2).mean().sqrt()
    encoder.last_layer().weight.mul_(factor)
    encoder.last_layer().bias.mul_(factor)


class QwenEncoder:
    """Qwen2.5-VL: windows, merged patches, no further objective."""

    token = 28
    mrope = True

    def __init__(self, model: Any) -> None:
        self.model = model

    def modules(self) -> dict[str, nn.Module]:
        return {"tower": self.model.model.visual}

    def __call__(self, pixels: Tensor, step: int, forced: bool = False) -> Tensor:
        return qwen.features(self.model, pixels)

    def last_layer(self) -> nn.Linear:
        last: nn.Linear = self.model.model.visual.merger.mlp[2]
        return last

    def family_loss(
        self, pixels: Tensor, scenes: list[Scene], features: Tensor, distil: float
    ) -> tuple[Tensor, Metrics]:
        return features.new_zeros(()), {}


class LlavaEncoder:
    """CLIP: the class token learns what is present, patch tokens may follow a teacher's, block by block.

    Args:
        teacher: a trained Qwen2.5-VL of the zoo with patches of the same size, or `None`.
    """

    mrope = False

    def __init__(self, model: Any, teacher: Any = None) -> None:
        self.model, self.teacher = model, teacher
        config = model.config.vision_config
        self.token, self.side = config.patch_size, config.image_size // config.patch_size
        self.class_heads = llava.ClassTokenHeads(config.hidden_size, len(THINGS))
        self._seen = llava.TowerStates()
        self._lesson: qwen.Lesson | None = None

    def modules(self) -> dict[str, nn.Module]:
        inner = self.model.model
        return {
            "tower": inner.vision_tower,
            "projector": inner.multi_modal_projector,
            "class_heads": self.class_heads,
        }

    def __call__(self, pixels: Tensor, step: int, forced: bool = False) -> Tensor:
        rng = Random(step)  # small images stand anywhere on the grid of windows, so that all positions are trained
        spare = [(self.side - side // self.token) // WINDOW for side in pixels.shape[1:3]]
        offset = WINDOW * rng.randint(0, spare[0]), WINDOW * rng.randint(0, spare[1])
        self._lesson = qwen.teach(self.teacher, pixels) if forced else None
        given = self._lesson.states if self._lesson else []
        features, self._seen = llava.features(self.model, pixels, offset, given)
        return features

    def last_layer(self) -> nn.Linear:
        last: nn.Linear = self.model.model.multi_modal_projector.linear_2
        return last

    def family_loss(
        self, pixels: Tensor, scenes: list[Scene], features: Tensor, distil: float
    ) -> tuple[Tensor, Metrics]:
        loss, metrics = features.new_zeros((), dtype=torch.float32), Metrics()
        if scenes:
            present = self.class_heads.loss(self._seen.classes, presence(scenes))
            loss, metrics["presence"] = loss + 5 * present, present.item()
        if self.teacher is not None and distil:
            lesson = self._lesson or qwen.teach(self.teacher, pixels)
            twice = 28 // self.token
            target = lesson.features.repeat_interleave(twice, 1).repeat_interleave(twice, 2).float()
            apart = (features.float() - target).pow(2).mean() / target.pow(2).mean()
            states = follow(self._seen.states, lesson.states[1:])
            looks = look_alike(self._seen.attention, lesson.attention)
            metrics |= {"distil": apart.item(), "states": states.item(), "looks": looks.item()}
            loss = loss + distil * (apart + states + looks)
        return loss, metrics


def follow(own: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """How far the layers' patch tokens are from those of the teacher's blocks, in the dimensions that both have.

    Squared error over the tokens' mean square, as the teacher's next block reads directions only.
    """
    apart = []
    for mine, theirs in zip(own, teacher, strict=False):
        target = theirs.float()
        error = (mine[..., : target.shape[-1]].float() - target).pow(2).mean(-1)
        apart.append((error / target.pow(2).mean(-1)).mean())
    return torch.stack(apart).mean()


def look_alike(own: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Kullback-Leibler divergence of the patches' attention from the teacher's, over the heads that both have.

    Without it queries and keys grow until every look is at a single token, and gradients through several layers
    explode. What goes to the class token is lost to the patches and counts as divergence.
    """
    apart = [own[0].new_zeros((), dtype=torch.float32)]
    for mine, theirs in zip(own, teacher, strict=False):
        p, q = theirs.float(), mine[:, : theirs.shape[1], 1:, 1:].float()
        apart.append((p * ((p + 1e-6).log() - (q + 1e-6).log())).sum(-1).mean())
    return torch.stack(apart).sum() / max(1, len(teacher))
