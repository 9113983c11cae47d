"""What differs between the families while a tower is trained: its forward pass and its own objectives."""

from __future__ import annotations

from random import Random
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from . import llava, qwen
from .batches import Batch
from .heads import Metrics
from .presence import THINGS, presence

# What a language model starts from. Its layers write at scales of ten and more within minutes of Muon: features
# of scale one are swamped by what layer 0 adds to them, and nothing can be read off them any more.
VISUAL_RMS = 6.0


class Encoder(Protocol):
    """A tower with its projector. `token` is the width of a visual token in pixels."""

    token: int
    mrope: bool

    def modules(self) -> dict[str, nn.Module]:
        """What is trained of it, by part."""

    def __call__(self, pixels: Tensor, step: int) -> Tensor:
        """Pixels `[B, H, W, 3]` -> what the language model reads, `[B, rows, columns, C]`."""

    def last_layer(self) -> nn.Linear:
        """The linear layer that gives the features."""

    def own_loss(self, batch: Batch, features: Tensor) -> tuple[Tensor, Metrics]:
        """The family's own objective, right after a call on the batch's pixels."""


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

    def __call__(self, pixels: Tensor, step: int) -> Tensor:
        return qwen.features(self.model, pixels)

    def last_layer(self) -> nn.Linear:
        last: nn.Linear = self.model.model.visual.merger.mlp[2]
        return last

    def own_loss(self, batch: Batch, features: Tensor) -> tuple[Tensor, Metrics]:
        return features.new_zeros(()), {}


class LlavaEncoder:
    """CLIP: the class token learns what is present, patch tokens may follow a teacher's features.

    Args:
        teacher: a trained Qwen2.5-VL of the zoo, or `None`.
        distil_weight: weight of the teacher's features.
    """

    mrope = False

    def __init__(self, model: Any, teacher: Any, distil_weight: float) -> None:
        self.model, self.teacher, self.distil_weight = model, teacher, distil_weight
        config = model.config.vision_config
        self.token, self.side = config.patch_size, config.image_size // config.patch_size
        self.class_heads = llava.ClassTokenHeads(config.hidden_size, len(THINGS))
        self._class_tokens: list[Tensor] = []

    def modules(self) -> dict[str, nn.Module]:
        inner = self.model.model
        return {
            "tower": inner.vision_tower,
            "projector": inner.multi_modal_projector,
            "class_heads": self.class_heads,
        }

    def __call__(self, pixels: Tensor, step: int) -> Tensor:
        rng = Random(step)  # small images stand anywhere on the grid, so that all positions are trained
        spare = [self.side - side // self.token for side in pixels.shape[1:3]]
        offset = rng.randint(0, spare[0]), rng.randint(0, spare[1])
        features, self._class_tokens = llava.features(self.model, pixels, offset)
        return features

    def last_layer(self) -> nn.Linear:
        last: nn.Linear = self.model.model.multi_modal_projector.linear_2
        return last

    def own_loss(self, batch: Batch, features: Tensor) -> tuple[Tensor, Metrics]:
        loss = 5 * self.class_heads.loss(self._class_tokens, presence(batch.scenes))
        metrics = {"presence": loss.item() / 5}
        if self.teacher is not None and self.distil_weight:
            with torch.no_grad():
                target = qwen.features(self.teacher, batch.pixels)
            twice = 28 // self.token
            target = target.repeat_interleave(twice, 1).repeat_interleave(twice, 2).float()
            apart = (features.float() - target).pow(2).mean() / target.pow(2).mean()
            metrics["distil"] = apart.item()
            loss = loss + self.distil_weight * apart
        return loss, metrics
