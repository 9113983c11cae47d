"""From which layer on does a model need its image no more? Nearly all visual tokens leave before one layer, then
before the next, and what is lost says how much had been read until then."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.core.method import Method, Stage
from foveate.core.selection import Choice, Selection
from foveate.core.view import ModelInfo, View
from foveate.data.rows import Rows
from foveate.errors import ConfigurationError
from foveate.evals.questions import prepare
from foveate.families import adapt
from foveate.inference.answer import Asker
from foveate.inference.pruning import prune
from foveate.scoring import metric as metric_of

BEGUN, HALF, DONE = 0.1, 0.5, 0.99
"""Shares of what the image tells that mark where reading has begun, is half done and is done."""


@dataclass(frozen=True, eq=False)
class Leave(Method):
    """All visual tokens but a few random ones leave before a layer, which equals masking them from there on."""

    name = "leave"

    layer: int = 0
    left: int = 1

    @property
    def prunes(self) -> bool:
        return True

    def stages(self, info: ModelInfo) -> Sequence[Stage]:
        return (Stage(self.layer),)

    def shares(self, info: ModelInfo, keep: float) -> Sequence[float]:
        return (0.0,)

    def select(self, view: View) -> Choice:
        count = min(self.left, len(view))
        order = torch.randperm(len(view), generator=torch.Generator().manual_seed(view.image))
        return Selection(len(view), order[:count].sort().values.to(view.device))


@dataclass(frozen=True)
class Depth:
    """What is lost when the image leaves before a layer.

    Attributes:
        layer: k; layers 0..k-1 saw the whole image.
        score, score_error: mean of the metric, and its standard error.
        kl, kl_error: nats between the unpruned distribution of the first answer token and this one, likewise.
        read: 1 - kl / kl at layer 0: share of what the image tells that was read before layer k; clipped to 0..1.
    """

    layer: int
    score: float
    score_error: float
    kl: float
    kl_error: float
    read: float


@dataclass(frozen=True)
class Proposal:
    """Layers that follow from where the model reads; places to begin a search, not results of one.

    Attributes:
        begun, half, done: first layer before which at least 10 %, 50 % and 99 % had been read.
        fastv: `FastV(layer=...)`: behind the first layer in which text reads the image, whose attention it ranks by.
        vitcop: `ViTCoP(shallow_layer=..., deep_layer=...)`: where reading begins, and where it is done.
        glimpse: `reduce_layer` of a glimpse module to be trained: the last of the layers that read the first half.
    """

    begun: int
    half: int
    done: int
    fastv: int
    vitcop: tuple[int, int]
    glimpse: int


def probe(
    asker: Asker,
    task: Rows,
    metric: str = "exact_match",
    left: int = 1,
    skip_bad: bool = False,
    on_questions: Callable[[int], None] = lambda n: None,
) -> tuple[list[Depth], float, list[str]]:
    """Measure every layer on the same questions.

    Args:
        left: visual tokens of every image that stay.

    Returns:
        a `Depth` for every layer, the unpruned score, and what was wrong with rows that were left out.

    Raises:
        ConfigurationError: no question could be asked, or fewer than one token is left.
        DataError: a row that cannot be asked, unless `skip_bad`.
    """
    if left < 1:
        raise ConfigurationError(f"left={left} must be at least 1: a prompt keeps a token of every image.")
    score, layers = metric_of(metric), adapt(asker.model).info.layers
    methods: list[Method | None] = [None, *(Leave(keep=0.5, layer=layer, left=left) for layer in range(layers))]
    scores, losses, skipped = list[list[float]](), list[list[float]](), list[str]()
    for number in range(len(task.ids)):
        rows, inputs = prepare(asker, task[number : number + 1], skip_bad, skipped)
        on_questions(1)
        if not rows:
            continue
        answers = [asker.answer(inputs, method)[0].text for method in methods]
        scores.append([score(answer, rows[0].answers) for answer in answers])
        losses.append(_losses(asker.model, inputs, methods))
    if not scores:
        raise ConfigurationError("No question could be asked, so no depth can be told; see what was skipped.")
    found = _summarise(np.array(scores)[:, 1:], np.array(losses))
    return found, float(np.mean([row[0] for row in scores])), skipped


def _losses(model: Any, inputs: dict[str, Tensor], methods: Sequence[Method | None]) -> list[float]:
    """Nats between the first method's distribution of the first answer token and each of the others'."""
    whole, *others = (_first_token(model, inputs, method) for method in methods)
    return [float((whole.exp() * (whole - other)).sum()) for other in others]


@torch.inference_mode()
def _first_token(model: Any, inputs: dict[str, Tensor], method: Method | None) -> Tensor:
    """`[V]` log-probabilities of the first answer token."""
    with prune(model, method):
        logits: Tensor = model(**inputs, use_cache=True, logits_to_keep=1).logits
    return logits[0, -1].float().log_softmax(-1)


def _summarise(scores: Any, losses: Any) -> list[Depth]:
    """From `[questions, layers]` each."""
    n = len(scores)

    def error(values: Any) -> float:
        return float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else float("nan")

    whole = float(losses[:, 0].mean())
    return [
        Depth(
            layer, float(scores[:, layer].mean()), error(scores[:, layer]), float(losses[:, layer].mean()),
            error(losses[:, layer]),
            float(np.clip(1 - losses[:, layer].mean() / whole, 0, 1)) if whole > 0 else 1.0,
        )
        for layer in range(losses.shape[1])
    ]  # fmt: skip


def propose(found: Sequence[Depth]) -> Proposal:
    """Layers for the methods that prune inside the language model.

    Raises:
        ConfigurationError: fewer than three layers.
    """
    layers = len(found)
    if layers < 3:
        raise ConfigurationError(f"{layers} layers are too few for stages inside the language model; three are needed.")

    def first(share: float) -> int:
        """The first layer from which on so much has always been read."""
        below = [depth.layer for depth in found if depth.read < share]
        return min(max(below, default=-1) + 1, layers - 1)

    begun, half, done = (first(share) for share in (BEGUN, HALF, DONE))
    shallow = min(max(begun, 1), layers - 2)
    return Proposal(begun, half, done, max(begun, 1), (shallow, max(done, shallow + 1)), max(half - 1, 0))
