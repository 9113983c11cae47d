"""`GlimpseModule`: everything GlimpsePrune adds to a model, in one small `nn.Module`."""

import contextlib
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from foveate.core.grid import Grid
from foveate.errors import CheckpointError
from foveate.files.atomic import replacing
from foveate.glimpse.config import GlimpseConfig
from foveate.glimpse.geometry import window_ids
from foveate.glimpse.vip import VIP

WEIGHTS = "model.safetensors"


class GlimpseModule(  # type: ignore[call-arg]
    nn.Module,
    PyTorchModelHubMixin,
    library_name="foveate",
    tags=["visual-token-pruning", "glimpseprune"],
):
    """The glimpse token's learned vectors and the VIP that turns its attention into a logit per visual token.

    `save_pretrained`, `from_pretrained` and `push_to_hub` store `model.safetensors` and `config.json`.
    Source: GlimpsePrune, https://github.com/HVision-NKU/GlimpsePrune.
    """

    def __init__(self, config: GlimpseConfig) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.vip = VIP(
            len(config.selected_layers) * config.num_attention_heads,
            config.vision_hidden_size,
            layers=len(config.selected_visual_layers),
            width=config.vip_width,
            cond_width=config.vip_cond_width,
            heads=config.vip_heads,
            act=config.vip_act,
            deep_supervision=config.deep_supervision,
            raw_attention=config.raw_attention,
            log_probabilities=not config.use_attention_logits,
        )
        self.embeddings = nn.Parameter(torch.empty(len(config.le_layers), config.le_length, size))
        self.projection = nn.Linear(size, size)
        self.norm = nn.RMSNorm(size, eps=config.rms_norm_eps)
        self.dropout = nn.Dropout(config.le_dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: embeddings N(0, 0.02), linear weights Xavier uniform, biases 0, norms 1."""
        nn.init.normal_(self.embeddings, std=0.02)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
            elif isinstance(layer, nn.RMSNorm):
                nn.init.ones_(layer.weight)

    @classmethod
    def for_model(cls, model: nn.Module, **overrides: Any) -> Self:
        """A freshly initialised module for `model`; `overrides` go to `GlimpseConfig.for_model`."""
        return cls(GlimpseConfig.for_model(model.config, **overrides))

    def check_fits(self, model: nn.Module) -> None:
        """Refuse a base model whose sizes differ from the ones this module was made for.

        Raises:
            CheckpointError: names the first size that differs.
        """
        actual = GlimpseConfig.for_model(model.config)
        for name in (
            "family",
            "hidden_size",
            "num_attention_heads",
            "num_hidden_layers",
            "vision_hidden_size",
        ):
            mine, theirs = getattr(self.config, name), getattr(actual, name)
            if mine != theirs:
                raise CheckpointError(
                    f"the glimpse module was made for {self.config.base_model or 'another model'} with "
                    f"{name}={mine}, but this model has {name}={theirs}; use the module trained for "
                    f"this model "
                    "or train one with `foveate train glimpse`"
                )

    def glimpse_vectors(self) -> Tensor:
        """The vectors g_j of all glimpse layers: [len(le_layers), le_length, hidden].

        `g_0` is the glimpse tokens' embedding; `g_j` is added to their hidden states before layer
        `le_layers[j]` for every j >= 1.
        """
        return self.dropout(self.norm(self.projection(self.embeddings)))

    def score_rows(
        self, attn: Tensor, conds: Sequence[Tensor], grids: Sequence[Grid], index: Tensor | None = None
    ) -> Tensor:
        """All output rows of the VIP, [rows, N], of which the last decides; arguments as for `score`."""
        dtype = self.vip.attn_in_proj.weight.dtype
        window = self.config.vip_window
        windows = None if window is None else window_ids(grids, window)
        return self.vip(attn.to(dtype), [cond.to(dtype) for cond in conds], grids, windows, index)

    def score(
        self, attn: Tensor, conds: Sequence[Tensor], grids: Sequence[Grid], index: Tensor | None = None
    ) -> Tensor:
        """One logit for each of N visual tokens: [N].

        Args:
            attn: [N, len(selected_layers) * heads] attention of the (last) glimpse token, layer-major: logits
                `q.k / sqrt(d)` or log-probabilities, as `config.use_attention_logits` says.
            conds: one [N, vision_hidden_size] for each of `config.selected_visual_layers`, in that order.
            grids: `Grid(t, h, w)` of each image in visual tokens; tokens are in raster order, image after image.
            index: [N] which of these tokens are given, where others were pruned before; None: all.
        """
        return self.score_rows(attn, conds, grids, index)[-1]

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """Write `config.json`, `model.safetensors` and a model card into `folder`.

        `kwargs` are those of `huggingface_hub.PyTorchModelHubMixin.save_pretrained`.
        """
        super().save_pretrained(folder, **kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the weights so that a reader never sees half a file."""
        state = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        with replacing(save_directory / WEIGHTS) as partial:
            save_file(state, partial, metadata={"format": "pt"})

    @classmethod
    def from_pretrained(cls, source: str | Path, **kwargs: Any) -> Self:
        """Read a module from a folder or from the Hugging Face hub, for inference (`eval` mode, on the CPU).

        `kwargs` are those of `huggingface_hub.PyTorchModelHubMixin.from_pretrained` (`revision`, `token`,
        ...).

        Raises:
            CheckpointError: no configuration or weights, or weights that do not fit the configuration.
        """
        try:
            with contextlib.redirect_stdout(StringIO()):  # the mixin prints
                # Strict: the mixin's default would leave missing weights at their random start.
                return super().from_pretrained(str(source), strict=True, **kwargs)
        except (TypeError, ValueError, RuntimeError, SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{source} does not hold a glimpse module (config.json + {WEIGHTS}): {error}"
            ) from error
