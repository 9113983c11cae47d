"""Which models are taken, which refused and why, and adapters that other packages bring."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Blip2Config, LlamaConfig, LlamaForCausalLM, MllamaConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

import foveate
import foveate.families as families
from foveate.core import plugins
from foveate.core.grid import ColumnGrid, Grid
from foveate.core.tiles import arrangement, panels
from foveate.errors import ConfigurationError, InputError, UnsupportedModelError
from foveate.families import adapt
from foveate.families.base import Family
from foveate.families.llava import Llava
from foveate.families.refusals import REFUSED
from foveate.families.tables import ALWAYS_TESTED, TESTED
from foveate.inference.doctor import examine
from tests.families.test_types import FEW
from tests.families.tiny import IMAGE, VIDEO, build
from tests.families.types import TABLE
from tests.reference import Drop


class Plugged(Family):
    """Serves a type of its own."""

    model_types = ("plugged",)


class Clashing(Family):
    """Serves a type that foveate serves."""

    model_types = ("llava",)


class Empty(Family):
    """Serves nothing."""


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the installed entry points."""

    def install(*names: str) -> None:
        found = [EntryPoint(name.lower(), f"{__name__}:{name}", families.GROUP) for name in names]
        monkeypatch.setattr(plugins, "entry_points", lambda group: found if group == families.GROUP else [])
        families.registry.cache_clear()

    yield install
    families.registry.cache_clear()


def test_adapters_of_other_packages_are_found(entries: Any) -> None:
    entries("Plugged")
    assert families.registry()["plugged"] is Plugged
    assert families.registry()["llava"] is Llava


def test_two_adapters_of_one_type_are_refused(entries: Any) -> None:
    entries("Clashing")
    with pytest.raises(ConfigurationError, match=r"foveate and tests.*'llava'"):
        families.registry()


@pytest.mark.parametrize("broken", ["Missing", "REFUSED", "Empty"])
def test_a_broken_adapter_is_left_out(entries: Any, broken: str) -> None:
    entries(broken, "Plugged")
    with pytest.warns(UserWarning, match="left out"):
        found = families.registry()
    assert "plugged" in found


def test_a_model_without_images_says_what_was_not_found() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(UnsupportedModelError, match="no vision tower was found"):
        adapt(LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=9)))
    with pytest.raises(UnsupportedModelError, match="no configuration"):
        adapt(nn.Linear(2, 2))


def test_a_model_without_placeholders_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llava")
    for name in ("image_token_id", "image_token_index"):
        monkeypatch.setitem(model.config.__dict__, name, None)
    with pytest.raises(UnsupportedModelError, match="no placeholder token id"):
        adapt(model)


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_infeasible_types_are_refused_with_a_reason(model_type: str) -> None:
    if model_type not in CONFIG_MAPPING:
        pytest.skip("not in this version of transformers")
    with pytest.raises(UnsupportedModelError, match=f"'{model_type}'"):
        examine(CONFIG_MAPPING[model_type]())


def test_cross_attention_is_told_from_a_resampler() -> None:
    assert "aria" in TABLE
    assert adapt(build("aria")).merge == "none"
    with pytest.raises(UnsupportedModelError, match="cross-attention"):
        examine(MllamaConfig())
    with pytest.raises(UnsupportedModelError, match="generate"):
        examine(Blip2Config())


def test_a_checkpoint_is_probed_without_its_weights() -> None:
    found = examine(build("qwen3_5").config)
    assert (found.layers, found.signal, found.modalities) == ("4 linear, 2 full", "all patches", ("image", "video"))
    assert "is before layer 3" in found.otherwise["fastv"]
    assert examine(build("llava").config).signal == "class token"
    mixed = examine(build("idefics2").config)
    assert "projected features stand in" in mixed.otherwise["vitcop"]
    assert {"glimpse_prune", "prumerge"} <= set(mixed.cannot)
    assert not {"vitcop", "visionzip", "hiprune", "vscan", "tome", "compose"} & set(mixed.cannot)


def test_what_is_said_to_be_tested_is() -> None:
    every_run = {TABLE[name].model_type for name in FEW}
    assert set(ALWAYS_TESTED) == every_run
    there = {name for name in TESTED if name in CONFIG_MAPPING}  # an older transformers lacks some
    assert there == {entry.model_type for entry in TABLE.values()} - every_run


def test_every_registered_type_is_tested_or_refused() -> None:
    """A type that a new version of transformers brings belongs into one of the lists."""
    known = {*ALWAYS_TESTED, *TESTED, *REFUSED}
    assert sorted({*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES} - known) == []


@pytest.mark.skipif("kimi_k25" not in TABLE, reason="not in this version of transformers")
def test_refused_videos_are_refused_by_name() -> None:
    entry, model = TABLE["kimi_k25"], build("kimi_k25")
    inputs = entry.batch([[3, ("image", 2, 2), 4]])
    inputs |= {"pixel_values_videos": inputs.pop("pixel_values"), "video_grid_thw": inputs.pop("image_grid_thw")}
    inputs["input_ids"][inputs["input_ids"] == IMAGE] = VIDEO
    with pytest.raises(UnsupportedModelError, match="kimi_k25.*averages the frames"), foveate.prune(model, Drop((0,))):
        model(**inputs)
    assert adapt(model).modalities == ("image",)


def test_images_and_videos_on_one_token_are_asked_apart() -> None:
    entry, model = TABLE["glm4v"], build("glm4v")
    both = entry.batch([[3, ("image", 2, 2), 4]]) | entry.batch([[3, ("video", 2, 2), 4]])
    with pytest.raises(InputError, match="same placeholder token"), foveate.prune(model, Drop((0,))):
        model(**both)


def test_tiles_lie_where_the_picture_has_them() -> None:
    assert arrangement(6, 1.5) == (2, 3)
    assert arrangement(6, 0.6) == (3, 2)
    tile = Grid(1, 4, 4)
    cut, whole = panels([tile] * 7, 300, 200)
    assert [box for _, box in cut][4] == (0.5, 1 / 3, 1.0, 2 / 3)
    assert whole == [(6, (0, 0, 1, 1))]
    fine, thumbnail = panels([tile, Grid(1, 8, 7)], 70, 80)
    assert (fine[0][0], thumbnail[0][0]) == (1, 0)


def test_grids_by_columns() -> None:
    assert ColumnGrid(1, 2, 3).coordinates()[:, 1:].tolist() == [[0, 0], [1, 0], [0, 1], [1, 1], [0, 2], [1, 2]]
    assert torch.equal(Grid(1, 1, 3).coordinates(), ColumnGrid(1, 1, 3).coordinates())


def test_pools_of_left_out_images_are_left_out() -> None:
    """Molmo 2 counts the patches of all images of a call."""
    family = adapt(build("molmo2"))
    pools = torch.tensor([[0, 1], [2, -1], [4, 5], [6, 7], [8, 9], [10, 11]])
    given = {
        "pixel_values": torch.arange(3.0).view(3, 1, 1).expand(3, 4, 5),
        "image_grids": torch.tensor([[1, 2, 0, 0]] * 3),
        "image_token_pooling": pools,
        "image_num_crops": torch.ones(3, dtype=torch.long),
    }
    taken = family.take(given, {"image": [0, 2]})
    assert taken["pixel_values"][:, 0, 0].tolist() == [0, 2]
    assert taken["image_token_pooling"].tolist() == [[0, 1], [2, -1], [4, 5], [6, 7]]
    assert taken["image_grids"].shape == (2, 4)
    assert set(family.take(given, {"image": []}).values()) == {None}


def test_chosen_frames_of_videos_are_taken() -> None:
    """Gemma 4 has the frames of all videos behind one another."""
    family = adapt(build("gemma4"))
    frames = torch.arange(5.0).view(5, 1, 1).expand(5, 4, 6)
    given = {
        "pixel_values_videos": frames,
        "video_position_ids": torch.zeros(5, 4, 2, dtype=torch.long),
        "num_frames_per_video": torch.tensor([2, 1, 2]),
    }
    taken = family.take(given, {"video": [0, 2]})
    assert taken["pixel_values_videos"][:, 0, 0].tolist() == [0, 1, 3, 4]
    assert taken["num_frames_per_video"].tolist() == [2, 2]
