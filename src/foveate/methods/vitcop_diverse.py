"""ViTCoP's schedule with choices of our own: what differs stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from foveate.methods.vitcop import ViTCoP


@dataclass(frozen=True)
class ViTCoPDiverse(ViTCoP):
    """ViTCoP's three stages and budgets (arXiv 2601.17818) with our choices on every tower: a quarter of stage 1's
    tokens by attention received, everything else by diversity. What `ViTCoP` does by default on towers without a class
    token.

    The key norm of the published stages 2 and 3 cannot depend on a question that comes after the image, and on the
    built-in models it ranks evidence below chance; what covers the image instead leaves something to read wherever the
    question points. Attention received puts the foreground first, which diversity alone spreads too thin. Nothing is
    clustered or merged, and no keys are read: it is cheaper as well.

    Args:
        keep: average visual tokens per decoder layer, as a ratio, count or `Keep`.
        attended: part of stage 1's tokens that attention chooses.
        vision_keep, shallow_layer, deep_layer, deep_divisor, saliency, shallow, deep: as `ViTCoP`.
        saliency_block, queries, cluster_fraction, kernel_width, reach, official, tower: as `ViTCoP`.
    """

    name = "vitcop_diverse"
    verified = None

    saliency: Literal["received", "key_norm", "mix"] | None = "mix"
    shallow: Literal["key_norm", "diversity"] | None = "diversity"
    deep: Literal["key_norm", "diversity", "attention"] | None = "diversity"
