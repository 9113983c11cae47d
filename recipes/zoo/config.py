"""What a zoo configuration file says. See `recipes/zoo/configs/`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveate.errors import FoveateError
from foveate.files.yaml_files import check_keys, check_mapping, read_yaml
from foveate.scenes import NEEDS

_CONFIGS = Path(__file__).parent / "configs"


class ZooConfigError(FoveateError, ValueError):
    """A configuration file that is missing, malformed or contradicts itself."""


@dataclass(frozen=True)
class BatchConfig:
    """One kind of batch. `images` a step and process, `size` (width, height), drawn by `weight`.

    Attributes:
        shows: `scenes`, `documents` or `videos`.
        fit: resizes the images to that square, as a CLIP processor does.
        frames: of each video, evenly spaced; an even number. `images` counts videos then.
    """

    size: tuple[int, int]
    images: int
    shapes: tuple[int, int]
    rows: tuple[int, int] = (2, 5)
    panel_share: float = 0.75
    weight: float = 1.0
    pages: int = 0
    images_per_prompt: int = 1
    fit: int = 0
    shows: str = "scenes"
    frames: int = 0


@dataclass(frozen=True)
class PhaseConfig:
    """Batches drawn until `until` (a share of the stage's steps)."""

    until: float
    batches: tuple[BatchConfig, ...]


@dataclass(frozen=True)
class StageConfig:
    """Length and rates of a stage.

    Attributes:
        clip: limit of the gradient norm.
        tower_rate: factor on the tower's rates.
        frozen_until: the tower is frozen up to this share of the steps.
        questions: K, questions that share one image.
        type_weights: how often each question type is asked, 1 where a type is not named.
        loss_weights: what a token of its answers counts, 1 where a type is not named.
        attention_weight: weight of the attention loss, falling to zero at `attention_until`.
        attention_layer, attention_heads: whose attention it is.
        dense_weight: weight of the dense heads.
        distil_weight: weight of matching another tower's features.
        reach_share: share of the questions that see the image in a run of layers only, drawn for each of them.
        reach_layers: shortest such run. Runs of more than half of the layers share the middle ones, so that nothing has
            to be read elsewhere.
        reach_windows: layers `[first, end)` in which runs of this type's questions lie; all where it is not named.
        forced: every layer of the tower reads what the other tower's block reads and learns its own step.
    """

    steps: int
    phases: tuple[PhaseConfig, ...]
    lr: float = 2e-3
    muon_lr: float = 0.016
    clip: float = 5.0
    tower_rate: float = 0.3
    frozen_until: float = 0.3
    questions: int = 12
    type_weights: dict[str, float] = field(default_factory=dict)
    loss_weights: dict[str, float] = field(default_factory=dict)
    attention_weight: float = 0.3
    attention_until: float = 0.6
    attention_layer: int = 4
    attention_heads: tuple[int, ...] = (0, 1, 3, 4)
    dense_weight: float = 0.15
    distil_weight: float = 0.0
    reach_share: float = 0.0
    reach_layers: int = 5
    reach_windows: dict[str, tuple[int, int]] = field(default_factory=dict)
    forced: bool = False


@dataclass(frozen=True)
class ZooConfig:
    """A whole recipe. `tower` and `text` go to the stock configuration classes.

    `vision` is stage V, in one or several parts with rates of their own; `language` is stage L.

    Attributes:
        start: trained weights to go on from.
        order: which of their decoder layers becomes each layer; empty: the same one.
        heads: the heads of a layer whose output begins with theirs; the others' begins at zero.
        silent: layers whose MLP's output begins at zero.
        largest_side: images of more than its square in pixels are made smaller (Qwen2.5-VL).
    """

    name: str
    family: str
    tower: dict[str, Any]
    text: dict[str, Any]
    vision: tuple[StageConfig, ...]
    language: StageConfig
    seed: int = 0
    processes: int = 2
    checkpoint_seconds: float = 60.0
    teacher: str = ""
    start: str = ""
    order: tuple[int, ...] = ()
    heads: dict[int, tuple[int, ...]] = field(default_factory=dict)
    silent: tuple[int, ...] = ()
    image_size: int = 0
    largest_side: int = 672


def load(path: str | Path) -> ZooConfig:
    """Reads a YAML file; a bare name is looked up in `configs/`.

    Raises:
        ZooConfigError: the file is missing, malformed or has unknown or missing keys.
    """
    file = Path(path)
    if not file.exists():
        file = _CONFIGS / file.name
    if not file.exists():
        known = ", ".join(sorted(p.name for p in _CONFIGS.glob("*.yaml")))
        raise ZooConfigError(f"no configuration {path}; {_CONFIGS} has {known}")
    raw = read_yaml(file, ZooConfigError)
    config: ZooConfig = _build(ZooConfig, raw, str(file))
    if config.family not in ("qwen2_5_vl", "llava"):
        raise ZooConfigError(f"{file}: family {config.family!r} is not one of qwen2_5_vl, llava")
    if config.teacher and config.family != "llava":
        raise ZooConfigError(f"{file}: only llava learns from a teacher; remove it")
    if any(part.steps < 1 for part in config.vision):
        raise ZooConfigError(f"{file}: a part of stage V without steps; give at least 1, or leave the part out")
    for stage in (*config.vision, config.language):
        _check(stage, bool(config.teacher), str(file))
    _check_layers(config, str(file))
    return config


def _check_layers(config: ZooConfig, where: str) -> None:
    """Finds layers that the model does not have."""
    layers = config.text["num_hidden_layers"]
    for name, (first, end) in config.language.reach_windows.items():
        if name not in NEEDS or not 0 <= first < end <= layers:
            raise ZooConfigError(f"{where}: reach_windows has {name}: [{first}, {end}] of {layers} layers")
    if config.order and (len(config.order) != layers or not set(config.order) <= set(range(layers))):
        raise ZooConfigError(f"{where}: order names a layer of the start for each of {layers}, not {config.order}")
    if bad := {*config.heads, *config.silent} - set(range(layers)):
        raise ZooConfigError(f"{where}: heads and silent name layers of {layers}, not {sorted(bad)}")
    count = config.text["num_attention_heads"]
    if bad := {head for heads in config.heads.values() for head in heads} - set(range(count)):
        raise ZooConfigError(f"{where}: heads names heads of {count}, not {sorted(bad)}")


def _check(stage: StageConfig, has_teacher: bool, where: str) -> None:
    """Finds what would stop a run half-way, or be ignored."""
    if not stage.phases or stage.phases[-1].until < 1.0:
        raise ZooConfigError(f"{where}: the last phase of a stage must last until 1.0")
    if (stage.forced or stage.distil_weight) and not has_teacher:
        raise ZooConfigError(f"{where}: a stage that is forced or has a distil_weight needs a teacher")
    for weights in (stage.type_weights, stage.loss_weights):
        if bad := [f"{name}: {weight}" for name, weight in weights.items() if name not in NEEDS or weight <= 0]:
            raise ZooConfigError(f"{where}: weights are positive numbers of {', '.join(NEEDS)}, not {', '.join(bad)}")
    for batch in (batch for phase in stage.phases for batch in phase.batches):
        if batch.shows not in ("scenes", "documents", "videos"):
            raise ZooConfigError(f"{where}: a batch shows scenes, documents or videos, not {batch.shows!r}")
        if (batch.shows == "videos") != (batch.frames > 0) or batch.frames % 2:
            raise ZooConfigError(f"{where}: videos, and nothing else, have an even number of frames: {batch.frames}")


_LISTS = {"vision": StageConfig, "phases": PhaseConfig, "batches": BatchConfig}


def _build(kind: type, raw: Any, where: str) -> Any:
    """A dataclass from nested mappings, refusing keys it does not know."""
    check_mapping(raw, where, ZooConfigError)
    check_keys(kind, raw, where, ZooConfigError)
    values = {}
    for key, value in raw.items():
        if key in _LISTS:
            if not isinstance(value, list):
                raise ZooConfigError(f"{where}: {key}: expected a list, got {value!r}")
            value = tuple(_build(_LISTS[key], v, f"{where}: {key}[{i}]") for i, v in enumerate(value))
        elif key == "language":
            value = _build(StageConfig, value, f"{where}: {key}")
        elif isinstance(value, list):
            value = tuple(value)
        values[key] = value
    return kind(**values)
