"""The tiny LLaVA: a CLIP tower with class token, a projector and a Llama, all stock classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from recipes.zoo import initialise
from recipes.zoo.config import ZooConfig
from recipes.zoo.graft import FREQUENCIES, WAVES, graft, place_positions, position_dims
from recipes.zoo.qwen import sample_pixels, text_settings
from recipes.zoo.tokenizer import IMAGE

# Fast pairs turn as the teacher's language model's, so that it finds its way in text from the start; slow ones turn
# 16 times less, as an image that was 12 x 12 positions of M-RoPE is now 576 in a row. Measured in `zoo/README.md`.
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 16.0,
    "low_freq_factor": 8.0,
    "high_freq_factor": 10.0,
    "original_max_position_embeddings": 360,
}
BAND = (0.3,) * 6 + (1.0,) * 10
_OFFSETS = [(0, 1), (0, -1), (1, 0), (-1, 0), (0, 0), (0, 2), (0, -2), (1, 1), (-1, -1), (2, 0)]


def configure(config: ZooConfig, tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    """The stock configuration of the recipe; LLaVA-1.5's feature layer and strategy."""
    tower = {"model_type": "clip_vision_model", "image_size": config.image_size}
    text = {"model_type": "llama", "rope_parameters": ROPE}
    return LlavaConfig(
        vision_config=tower | config.tower,
        text_config=text_settings(tokenizer) | text | config.text,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(config.image_size // config.tower["patch_size"]) ** 2,
        tie_word_embeddings=True,
    )


def create(config: ZooConfig, tokenizer: PreTrainedTokenizerFast, teacher: Any = None) -> LlavaForConditionalGeneration:
    """An untrained model: DCT patches or a teacher's tower, sinusoidal positions, heads that look at neighbours."""
    torch.manual_seed(config.seed)
    model = LlavaForConditionalGeneration(configure(config, tokenizer))
    tower = model.model.vision_tower
    layers = tower.encoder.layers
    initialise.shrink_residuals([lin for ly in layers for lin in (ly.self_attn.out_proj, ly.mlp.fc2)], len(layers))
    with torch.no_grad():
        place_positions(tower)
        for i, layer in enumerate(layers):
            _look_at_neighbours(layer.self_attn, i)
        if teacher is None:
            _see_by_dct(tower)
        else:
            graft(tower, teacher)
    initialise.match_and_copy(model.model.language_model, BAND)
    return model


def _see_by_dct(tower: Any) -> None:
    """A whitened DCT as patch embedding, in the dimensions that positions leave free."""
    patch = tower.config.patch_size
    free = tower.config.hidden_size - position_dims(tower.config.image_size // patch)
    pixels = sample_pixels(48, 14 * patch)
    patches = F.unfold(pixels.permute(0, 3, 1, 2), patch, stride=patch).transpose(1, 2).flatten(0, 1)
    kernel = tower.embeddings.patch_embedding.weight.zero_()
    kernel[:free] = initialise.dct_patches(patches, free, patch, free - 28, 14).view(free, 3, patch, patch)


def _look_at_neighbours(attention: Any, layer: int, strength: float = 0.35) -> None:
    """Query and key weights that turn the sinusoids into a soft look at one fixed neighbour a head."""
    heads, dim, half = attention.num_heads, attention.head_dim, WAVES // 2
    gain = math.sqrt(strength * math.sqrt(dim))
    for head in range(heads):
        dy, dx = _OFFSETS[(layer * heads + head) % len(_OFFSETS)]
        phase = torch.cat([FREQUENCIES * dy, FREQUENCIES * dx])
        turn = torch.zeros(WAVES, WAVES)
        turn[:half, :half] = turn[half:, half:] = torch.diag(phase.cos())
        turn[:half, half:], turn[half:, :half] = -torch.diag(phase.sin()), torch.diag(phase.sin())
        rows = slice(head * dim, head * dim + WAVES)
        attention.q_proj.weight[rows] = 0
        attention.k_proj.weight[rows] = 0
        attention.q_proj.weight[rows, -WAVES:] = gain * turn
        attention.k_proj.weight[rows, -WAVES:] = gain * torch.eye(WAVES)


@dataclass
class TowerStates:
    """What CLIP's tower makes of images.

    Attributes:
        states: patch tokens `[B, P, D]` that leave each layer but the last; LLaVA reads the final ones.
        attention: of each layer but the last, `[B, heads, 1 + P, 1 + P]`; the class token comes first.
        classes: class tokens of the second-last and of the last layer, each `[B, D]`.
    """

    states: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)
    classes: list[Tensor] = field(default_factory=list)


def encode(tower: Any, pixels: Tensor, offset: tuple[int, int] = (0, 0), given: Sequence[Tensor] = ()) -> TowerStates:
    """CLIP's tower on pixels `[B, H, W, 3]`; smaller images stand at `offset` (rows, columns) of the grid.

    `given` replaces the first dimensions of the patch tokens that enter each layer, and stops gradients there: each
    layer learns its own step.
    """
    embeddings, config = tower.embeddings, tower.config
    b, patch = pixels.shape[0], config.patch_size
    side = config.image_size // patch
    rows, columns = pixels.shape[1] // patch, pixels.shape[2] // patch
    x = embeddings.patch_embedding(pixels.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
    table = embeddings.position_embedding.weight
    grid = table[1:].view(side, side, -1)[offset[0] :, offset[1] :][:rows, :columns].reshape(1, rows * columns, -1)
    first = (embeddings.class_embedding + table[0]).to(x.dtype).expand(b, 1, -1)
    x = tower.pre_layrnorm(torch.cat([first, x + grid.to(x.dtype)], 1))
    seen = TowerStates()
    for i, layer in enumerate(tower.encoder.layers[:-1]):
        if i < len(given):
            x = x.detach()
            patches = torch.cat([given[i].to(x.dtype), x[:, 1:, given[i].shape[-1] :]], -1)
            x = torch.cat([x[:, :1], patches], 1)
        x, attention = _layer(layer, x)
        seen.states.append(x[:, 1:])
        seen.attention.append(attention)
    last, _ = _layer(tower.encoder.layers[-1], x)
    seen.classes = [x[:, 0], tower.post_layernorm(last[:, 0])]
    return seen


def _layer(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    attention, (b, length, width) = layer.self_attn, x.shape
    y = layer.layer_norm1(x)
    shape = (b, length, attention.num_heads, attention.head_dim)
    q, k, v = (p(y).view(shape).transpose(1, 2) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
    weights = torch.matmul(q * attention.head_dim**-0.5, k.transpose(-1, -2)).softmax(-1)
    x = x + attention.out_proj(torch.matmul(weights, v).transpose(1, 2).reshape(b, length, width))
    return x + layer.mlp(layer.layer_norm2(x)), weights


def features(
    model: Any, pixels: Tensor, offset: tuple[int, int] = (0, 0), given: Sequence[Tensor] = ()
) -> tuple[Tensor, TowerStates]:
    """Projected patch tokens `[B, rows, columns, C]` and what the tower saw, as `encode`."""
    patch = model.model.vision_tower.config.patch_size
    seen = encode(model.model.vision_tower, pixels, offset, given)
    projected = model.model.multi_modal_projector(seen.states[-1])
    return projected.view(len(pixels), pixels.shape[1] // patch, pixels.shape[2] // patch, -1), seen


def copy_text(model: Any, teacher: Any) -> None:
    """Starts the Llama from the teacher's language model, as far as their parameters have the same names."""
    own = model.model.language_model.state_dict()
    given = {name: value for name, value in teacher.model.language_model.state_dict().items() if name in own}
    model.model.language_model.load_state_dict({n: v.to(own[n].dtype) for n, v in given.items()}, strict=False)


class ClassTokenHeads(nn.Module):
    """What is present in the image, from class tokens: the objective that gives them something to attend to."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.second_last, self.last = nn.Linear(width, classes), nn.Linear(width, classes)

    def loss(self, tokens: list[Tensor], present: Tensor) -> Tensor:
        """Binary cross entropy of both layers' class tokens against `present` `[B, classes]`."""
        scores = [head(token.float()) for head, token in zip((self.second_last, self.last), tokens, strict=True)]
        loss = sum(F.binary_cross_entropy_with_logits(s, present) for s in scores)
        assert isinstance(loss, Tensor)
        return loss
