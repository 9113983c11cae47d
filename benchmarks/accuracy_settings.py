"""What benchmarks/accuracy.py measures: every method as it is by default and as it was published, and each switch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from departures import (
    CDPrunerBeforeProjector,
    PruMergeAmongDropped,
    SparseVLMOneLess,
    ToMeJoinedKeys,
    VisionZipJoinedKeys,
    VisPrunerByAttention,
    VScanGlobalFirst,
)
from vitcop_departures import PUBLISHED, controls, diverse_controls, variants

from foveate.core.method import Method
from foveate.core.view import ModelInfo
from foveate.errors import ConfigurationError
from foveate.methods import Compose, FasterVLM, FastV, PruMerge, Random, make, registry
from foveate.scenes.moving import STEP
from foveate.scenes.splits import VIDEO_FRAMES
from foveate.specs.settings import UNPRUNED, Setting

KEEPS = {"1/3": 1 / 3, "2/9": 2 / 9, "1/9": 1 / 9, "1/20": 1 / 20}
BASELINES = ("random", "downsample")
FEWER = "fewer frames"
PROPORTIONAL = "proportional"
LAYERS = {"shallow_layer": 4, "deep_layer": 9}
FITTED, FITTED_TO = "layers 4 and 9, proportional", 10
"""For the wide model of ten layers; chosen on samples from 500 on (docs/vitcop.md)."""
FOR_VIDEOS = ("evs", "fastvid", "vidcom2")
"""What they do is about frames; the questions here are about images."""
SWITCHES: dict[str, dict[str, Any]] = {
    "cdpruner": {"published": True},
    "dart": {"published": True},
    "hiprune": {"wrap": True},
    "visionzip": {"published": True},
    "vitcop": {"official": True},
}
"""What makes a method do what the published code does, where that is not the default."""
RENUMBERED = (
    *("cdpruner", "divprune", "fastervlm", "hiprune", "prumerge", "prumerge+", "visionzip", "vispruner", "vscan"),
    *("fastv", "pyramiddrop", "sparsevlm"),
)
"""Methods whose published LLaVA code renumbers positions; ViTCoP's `official` does so itself."""


@dataclass(frozen=True)
class Measured(Setting):
    """A setting whose method is given: compositions and departures have no name in the registry.

    Attributes:
        mode: `default`, `published`, or what is changed.
        keep: the budget's label.
        method: None: unpruned.
        frames: of each video that are shown; 0: all.
    """

    mode: str = "default"
    keep: str = ""
    method: Method | None = field(default=None, compare=False)
    frames: int = 0

    def make(self) -> Method | None:
        return self.method

    def describe(self) -> str:
        """The class and all its fields: two studies share the answers of the settings that they both have."""
        if self.method is None:
            return f"unpruned, {self.frames} frames" if self.frames else self.name
        fields = self.method.parameters().items()
        return f"{type(self.method).__name__}({', '.join(f'{name}={value!r}' for name, value in fields)})"


Asked = tuple[str, str, str, Callable[[], Method] | int]
"""Kind, mode, keep, and what makes the method; or of how many frames videos are shown, unpruned."""


def measured(asked: Iterator[Asked], info: ModelInfo) -> tuple[list[Measured], dict[str, str]]:
    """The unpruned model and every setting that is possible on such a model; why the others are not, by name."""
    made, refused = [Measured(UNPRUNED)], {}
    for kind, mode, keep, build in asked:
        name = f"{kind}, {mode}, {keep}"
        if isinstance(build, int):
            made.append(Measured(name, kind, mode=mode, keep=keep, frames=build))
            continue
        try:
            method = build()
            method.stages(info)
            method.check(info)
        except ConfigurationError as error:
            refused[name] = str(error)
            continue
        made.append(Measured(name, kind, mode=mode, keep=keep, method=method))
    return made, refused


def methods(info: ModelInfo, keeps: list[str], seeds: int) -> Iterator[Asked]:
    """Every method at every budget, by default and as published. GlimpsePrune has no `keep` and a page of its own."""
    for label in keeps:
        keep = KEEPS[label]
        for seed in range(seeds):
            yield "random", f"seed {seed}", label, lambda keep=keep, seed=seed: Random(keep=keep, seed=seed)
        for name in [
            *sorted(set(registry()) - {"random", "compose", "glimpse_prune", *FOR_VIDEOS}),
            "prumerge+",
            "fastervlm+fastv",
        ]:
            yield name, "default", label, lambda name=name, keep=keep: build(name, keep)
            if changed := published(name, info.family):
                yield name, "published", label, lambda name=name, keep=keep, c=changed: build(name, keep, **c)


def published(name: str, family: str) -> dict[str, Any]:
    """Fields that reproduce the published code on a family; none where the default does. Only LLaVA code renumbers
    positions; ViTCoP's exists for LLaVA only, elsewhere its choices are the published ones."""
    llava = family == "llava"
    fields = PUBLISHED if name == "vitcop" and not llava else SWITCHES.get(name, {})
    return fields | ({"positions": "contiguous"} if llava and name in RENUMBERED else {})


def some(names: Iterable[str], keeps: list[str], seeds: int) -> Iterator[Asked]:
    """Random and some methods by default."""
    for label in keeps:
        keep = KEEPS[label]
        for seed in range(seeds):
            yield "random", f"seed {seed}", label, lambda keep=keep, seed=seed: Random(keep=keep, seed=seed)
        for name in names:
            yield name, "default", label, lambda name=name, keep=keep: build(name, keep)


def wide(info: ModelInfo, keeps: list[str], seeds: int) -> Iterator[Asked]:
    """A few methods where little of an image is evidence, two of them also with proportional attention, and ViTCoP with
    that and layers fitted to the model."""
    names = ("downsample", "divprune", "fastervlm", "visionzip", "vitcop")
    yield from some(names, keeps, seeds)
    for label in keeps:
        keep = KEEPS[label]
        yield "vitcop", "published", label, lambda keep=keep: build("vitcop", keep, **PUBLISHED)
        for name in ("divprune", "vitcop"):
            yield name, PROPORTIONAL, label, lambda name=name, keep=keep: build(name, keep, proportional=True)
        if info.layers == FITTED_TO:
            yield "vitcop", FITTED, label, lambda keep=keep: build("vitcop", keep, proportional=True, **LAYERS)


def video(info: ModelInfo, keeps: list[str], seeds: int) -> Iterator[Asked]:
    """Methods made for videos, some that are not, and fewer frames."""
    yield from some(("downsample", "divprune", "vitcop", "vitcop_diverse", *FOR_VIDEOS), keeps, seeds)
    for label in keeps:
        if steps := round(KEEPS[label] * VIDEO_FRAMES / STEP):
            yield FEWER, "unpruned", label, steps * STEP


def build(name: str, keep: float, **fields: Any) -> Method:
    if name == "prumerge+":
        return PruMerge(keep=keep, plus=True, **fields)
    if name == "fastervlm+fastv":
        return Compose(FasterVLM(), FastV(), keep=keep)
    return make(name, keep=keep, **fields)


def switches(info: ModelInfo, keeps: list[str], seeds: int) -> Iterator[Asked]:
    """Each switch by itself, each departure from published code that the library once had, and the methods as they are.

    Positions only where the text model reads one number a token.
    """
    changed: list[tuple[str, str, Callable[[float], Method]]] = [
        ("visionzip", "keys with heads joined, not averaged", lambda keep: VisionZipJoinedKeys(keep=keep)),
        ("tome", "keys with heads joined, not averaged", lambda keep: ToMeJoinedKeys(keep=keep)),
        ("cdpruner", "features before the projector", lambda keep: CDPrunerBeforeProjector(keep=keep)),
        ("vispruner", "tokens left stay in order of attention", lambda keep: VisPrunerByAttention(keep=keep)),
        ("prumerge", "neighbours among dropped tokens, attention shares", lambda keep: PruMergeAmongDropped(keep=keep)),
        ("vscan", "global scan before the local one", lambda keep: VScanGlobalFirst(keep=keep)),
        ("sparsevlm", "one token less is recycled", lambda keep: SparseVLMOneLess(keep=keep)),
    ]
    for name, fields in SWITCHES.items():
        if name != "vitcop" or info.family == "llava":
            text = ", ".join(f"{field}={value}" for field, value in fields.items())
            changed.append((name, f"`{text}`", lambda keep, n=name, f=fields: build(n, keep, **f)))
    for name in RENUMBERED if info.family == "llava" else ():
        text = '`positions="contiguous"`'
        changed.append((name, text, lambda keep, n=name: build(n, keep, positions="contiguous")))
    for name in dict.fromkeys(name for name, _, _ in changed):
        for label in keeps if name != "pyramiddrop" else ["1/3"]:  # it cannot keep a ninth of so few layers
            keep = KEEPS[label]
            yield name, "default", label, lambda name=name, keep=keep: build(name, keep)
            for kind, mode, make_it in changed:
                if kind == name:
                    yield name, mode, label, lambda make_it=make_it, keep=keep: make_it(keep)


def vitcop(info: ModelInfo, keeps: list[str], seeds: int) -> Iterator[Asked]:
    """ViTCoP with published choices, the default of the study, and each thing changed in it."""
    for label in keeps:
        keep = KEEPS[label]
        yield "vitcop", "default", label, lambda keep=keep: build("vitcop", keep, **PUBLISHED)
        for mode, make_it in variants(info.family == "llava").items():
            yield "vitcop", mode, label, lambda keep=keep, make_it=make_it: make_it(keep)


def stages(info: ModelInfo, keeps: list[str], seeds: int) -> Iterator[Asked]:
    """What ViTCoP's stages are worth: with published choices and with ours, against chance and by the question."""
    for label in keeps:
        keep = KEEPS[label]
        yield "vitcop", "default", label, lambda keep=keep: build("vitcop", keep, **PUBLISHED)
        for mode, make_it in controls().items():
            yield "vitcop", mode, label, lambda keep=keep, make_it=make_it: make_it(keep)
        yield "vitcop_diverse", "default", label, lambda keep=keep: build("vitcop_diverse", keep)
        for mode, make_it in diverse_controls().items():
            yield "vitcop_diverse", mode, label, lambda keep=keep, make_it=make_it: make_it(keep)
