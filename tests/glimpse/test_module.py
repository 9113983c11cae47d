"""`GlimpseModule`: saving and loading, official checkpoints, and everything that can be wrong with one."""

import json
import pickle
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from foveate.core.grid import Grid
from foveate.errors import CheckpointError, ConfigurationError, UnsupportedModelError
from foveate.glimpse import GlimpseConfig, GlimpseModule, convert, load_module, load_official
from foveate.glimpse.official import WEIGHTS
from tests.golden_files import assert_close, golden_path, golden_tensors

OFFICIAL = ["gp_qwen", "gp_llava"]


def tiny_config(**overrides: object) -> GlimpseConfig:
    fields = {
        "family": "qwen2_5_vl",
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "vision_hidden_size": 8,
        "selected_layers": (1,),
        "reduce_layer": 1,
        "le_layers": (0, 1, 2),
        "selected_visual_layers": (1, 0),
        "use_attention_logits": True,
        "vip_width": 16,
        "vip_cond_width": 32,
    }
    return GlimpseConfig(**{**fields, **overrides})


def model_config(family: str, layers: int, hidden: int, depth: int) -> SimpleNamespace:
    text = SimpleNamespace(hidden_size=hidden, num_attention_heads=4, num_hidden_layers=layers, rms_norm_eps=1e-6)
    vision = SimpleNamespace(hidden_size=32, num_hidden_layers=depth)
    return SimpleNamespace(model_type=family, vision_config=vision, get_text_config=lambda: text)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A copy of an official checkpoint that a test may damage."""
    folder = tmp_path / "official"
    shutil.copytree(golden_path("gp_qwen/new_modules"), folder)
    return folder


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_checkpoint(name: str) -> None:
    module = load_official(golden_path(f"{name}/new_modules"))
    spec = json.loads(golden_path(f"{name}/spec.json").read_text())["glimpse_prune"]
    assert list(module.config.selected_layers) == spec["selected_layers"]
    assert module.config.use_attention_logits == spec["use_attention_logits"]
    expected = golden_tensors(f"{name}/single/outputs.safetensors")["glimpse.embeds"]
    assert_close(module.glimpse_vectors(), expected, atol=1e-5)


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("case", ["single", "batch2"])
def test_scores_of_one_sample(name: str, case: str) -> None:
    """From the official attention rows and visual conditions to the official logits, row by row."""
    module = load_official(golden_path(f"{name}/new_modules"))
    out = golden_tensors(f"{name}/{case}/outputs.safetensors")
    count, start = len(module.config.selected_visual_layers), 0
    sides = out["attn_grid_hw"].tolist() if "attn_grid_hw" in out else None
    row = 0
    while f"vip_logits.{row}" in out:
        attn = out[f"glimpse_attn.{row}"]
        part = slice(start, start + len(attn))
        start = part.stop
        side = int(len(attn) ** 0.5)
        h, w = sides[row] if sides else (side, side)
        conds = [out[f"visual_cond.{i}"].reshape(-1, module.config.vision_hidden_size)[part] for i in range(count)]
        logits = module.score(attn.flatten(1), conds, [Grid(1, h, w)])
        assert_close(logits, out[f"vip_logits.{row}"])
        row += 1
    assert row > 0


def test_round_trip(tmp_path: Path) -> None:
    module = GlimpseModule(tiny_config(base_model="some/model", anchors=("tl",)))
    module.save_pretrained(tmp_path)
    again = GlimpseModule.from_pretrained(tmp_path)
    assert again.config == module.config
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))
    assert not list(tmp_path.glob(".*partial"))


def test_convert(official: Path, tmp_path: Path) -> None:
    convert(official, tmp_path / "ours")
    assert not (tmp_path / "ours" / WEIGHTS).exists()
    ours, theirs = load_module(tmp_path / "ours"), load_module(official)
    assert ours.config == theirs.config
    assert torch.equal(ours.embeddings, theirs.embeddings)
    with pytest.raises(CheckpointError, match="not an empty folder"):
        convert(official, tmp_path / "ours")


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_malicious_pickle_does_not_run(official: Path, tmp_path: Path, how: str) -> None:
    trap = tmp_path / "owned"
    contents = {"attn_fuser": Payload(trap), "learnable_embeddings": 0, "le_proj": 0, "le_norm": 0}
    if how == "torch":
        torch.save(contents, official / WEIGHTS)
    else:
        (official / WEIGHTS).write_bytes(pickle.dumps(contents))
    with pytest.raises(CheckpointError, match="attempt to run code"):
        load_official(official)
    assert not trap.exists()
    pickle.loads(pickle.dumps(contents))  # the payload is real
    assert trap.exists()


@pytest.mark.parametrize("size", [0, 100, 20_000])
def test_truncated_pickle(official: Path, size: int) -> None:
    whole = (official / WEIGHTS).read_bytes()
    assert size < len(whole)
    (official / WEIGHTS).write_bytes(whole[:size])
    with pytest.raises(CheckpointError, match="truncated"):
        load_official(official)


def rewrite(official: Path, change: object) -> None:
    contents = torch.load(official / WEIGHTS, weights_only=True)
    change(contents)
    torch.save(contents, official / WEIGHTS)


def test_missing_and_unknown_keys(official: Path) -> None:
    rewrite(official, lambda c: c["le_norm"].update(stray=c["le_norm"].pop("weight")))
    with pytest.raises(CheckpointError, match=r"norm\.weight.*norm\.stray"):
        load_official(official)
    rewrite(official, lambda c: c.pop("le_proj"))
    with pytest.raises(CheckpointError, match="le_proj"):
        load_official(official)


def test_wrong_shape_and_type(official: Path) -> None:
    rewrite(official, lambda c: c.update(learnable_embeddings=c["learnable_embeddings"][:, :, :-1].clone()))
    with pytest.raises(CheckpointError, match="embeddings has shape"):
        load_official(official)
    rewrite(official, lambda c: c.update(learnable_embeddings=[1, 2]))
    with pytest.raises(CheckpointError):
        load_official(official)
    torch.save([1, 2], official / WEIGHTS)
    with pytest.raises(CheckpointError, match="list"):
        load_official(official)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "qwen2_5_vl"}, "model_type"),
        ({"attn_fuse_type": "AttnFuserV9"}, "AttnFuserV1"),
        ({"selected_layers": [99]}, "selected_layers"),
        ({"attn_fuse_num_heads": 5}, "vip_heads"),
        ({"reduce_layer": None}, "config.json"),
        ({"selected_visual_layers": None}, "config.json"),
    ],
)
def test_bad_official_config(official: Path, change: dict, complaint: str) -> None:
    path = official / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=complaint):
        load_official(official)


def test_incomplete_official_folder(official: Path) -> None:
    path = official / "config.json"
    raw = json.loads(path.read_text())
    del raw["le_layers"]
    path.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="le_layers"):
        load_official(official)
    path.write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_official(official)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_official(official)


def test_bad_folders_of_our_own(tmp_path: Path) -> None:
    module = GlimpseModule(tiny_config())
    module.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(asdict(replace(module.config, le_length=2))))
    with pytest.raises(CheckpointError):
        GlimpseModule.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(CheckpointError):
        GlimpseModule.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError):
        GlimpseModule.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        GlimpseModule.from_pretrained(tmp_path)


@pytest.mark.parametrize(("layers", "expected"), [(28, 18), (36, 23), (32, 21), (40, 26)])
def test_defaults_are_the_published_ones(layers: int, expected: int) -> None:
    qwen = GlimpseConfig.for_model(model_config("qwen2_5_vl", layers, 3584, 32))
    assert qwen.selected_layers == (expected,)
    assert qwen.reduce_layer == expected
    assert qwen.selected_visual_layers == (31, 23, 15, 7)
    assert (qwen.vip_width, qwen.vip_cond_width, qwen.use_attention_logits) == (256, 512, True)
    llava = GlimpseConfig.for_model(model_config("llava", layers, 4096, 24))
    assert llava.selected_visual_layers == (23, 17, 11, 5)
    assert not llava.use_attention_logits


def test_overrides_and_unknown_family() -> None:
    config = GlimpseConfig.for_model(model_config("llava", 4, 64, 4), selected_layers=[0], reduce_layer=2)
    assert config.selected_layers == (0,)
    assert config.selected_visual_layers == (3, 2, 1)
    with pytest.raises(ConfigurationError, match="no treshold"):
        GlimpseConfig.for_model(model_config("llava", 4, 64, 4), treshold=0.4)
    config = model_config("fuyu", 4, 64, 2)
    config.vision_config = None
    with pytest.raises(UnsupportedModelError, match=r"vision blocks.*'fuyu'"):
        GlimpseConfig.for_model(config)


def test_module_refuses_another_model() -> None:
    module = GlimpseModule(tiny_config(hidden_size=64, num_attention_heads=4, vision_hidden_size=32))
    module.check_fits(SimpleNamespace(config=model_config("qwen2_5_vl", 3, 64, 2)))
    with pytest.raises(CheckpointError, match="num_hidden_layers=3"):
        module.check_fits(SimpleNamespace(config=model_config("qwen2_5_vl", 4, 64, 2)))


@pytest.mark.parametrize(
    "change",
    [
        {"le_layers": (1, 2)},
        {"le_layers": (0, 0)},
        {"le_length": 0},
        {"threshold": 1.5},
        {"background": 1.5},
        {"selected_visual_layers": (1, -1)},
        {"family": "llava"},  # visual layer 0
        {"selected_layers": ()},
    ],
)
def test_contradicting_configuration(change: dict) -> None:
    with pytest.raises(ConfigurationError):
        tiny_config(**change)


def test_windowed_scores_differ_from_global_ones() -> None:
    torch.manual_seed(0)
    windowed = GlimpseModule(tiny_config(vip_window=2)).eval()
    globally = GlimpseModule(tiny_config()).eval()
    globally.load_state_dict(windowed.state_dict())
    attn, conds = torch.randn(20, 2), [torch.randn(20, 8), torch.randn(20, 8)]
    a, b = (m.score(attn, conds, [Grid(1, 4, 5)]) for m in (windowed, globally))
    assert a.shape == b.shape == (20,)
    assert not torch.allclose(a, b, atol=1e-4)
