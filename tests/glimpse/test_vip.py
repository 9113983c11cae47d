"""The VIP against the official implementation, and properties that need no fixture."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from foveate.core.grid import Grid
from foveate.glimpse import geometry
from foveate.glimpse.vip import VIP, Segments
from tests.golden_files import assert_close, golden_cases, golden_path, golden_tensors

CASES = [
    name.split("inputs_")[1].removesuffix(".safetensors") for name in golden_cases("gp_vip_qwen/inputs_*.safetensors")
]
OFFICIAL = {
    "global": {},
    "windowed": {"windowed": True},
    "global_with_raw_attn_from_logits": {"raw_attention": True},
    "global_with_raw_attn_from_logprobs": {"raw_attention": True, "log_probabilities": True},
    "deep_supervision_train_mode_global": {"deep_supervision": True, "train": True},
    "deep_supervision_eval_mode_windowed": {"deep_supervision": True, "windowed": True},
}


def build(deep_supervision: bool = False, **options: bool) -> tuple[VIP, dict]:
    config = json.loads(golden_path("gp_vip_qwen/config.json").read_text())
    vip = VIP(
        config["num_attention_heads"] * config["num_selected_layers"],
        config["vision_hidden_size"],
        layers=config["num_layers"],
        width=config["attn_fuse_size"],
        cond_width=config["visual_cond_size"],
        heads=config["attn_fuse_num_heads"],
        act=config["attn_fuse_hidden_act"],
        deep_supervision=deep_supervision,
        **options,
    )
    weights = "weights_deep.safetensors" if deep_supervision else "weights.safetensors"
    vip.load_state_dict(load_file(golden_path(f"gp_vip_qwen/{weights}")))
    return vip.eval(), config


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("output", OFFICIAL)
def test_matches_the_official_implementation(case: str, output: str) -> None:
    inputs = golden_tensors(f"gp_vip_qwen/inputs_{case}.safetensors")
    expected = golden_tensors(f"gp_vip_qwen/outputs_{case}.safetensors")
    options = dict(OFFICIAL[output])
    windowed, train = options.pop("windowed", False), options.pop("train", False)
    vip, config = build(**options)
    grids = merged_grids(inputs["grid_thw"], config["spatial_merge_size"])
    window = config["window_size"] // config["patch_size"] // config["spatial_merge_size"]
    attn = expected["logprob_attn_map"] if options.get("log_probabilities") else inputs["attn_map"]
    conds = [inputs[f"visual_cond.{i}"] for i in range(config["num_layers"])]
    with torch.no_grad():
        logits = vip.train(train)(attn, conds, grids, geometry.window_ids(grids, window) if windowed else None)
    assert_close(logits, expected[output])


@pytest.mark.parametrize("case", CASES)
def test_windows_are_qwens(case: str) -> None:
    inputs = golden_tensors(f"gp_vip_qwen/inputs_{case}.safetensors")
    _, config = build()
    window = config["window_size"] // config["patch_size"] // config["spatial_merge_size"]
    grids = merged_grids(inputs["grid_thw"], config["spatial_merge_size"])
    assert torch.equal(geometry.window_ids(grids, window).argsort(stable=True), inputs["window_index"])
    sizes = torch.bincount(geometry.window_ids(grids, window)) * config["spatial_merge_size"] ** 2
    official = inputs["cu_window_seqlens"].unique_consecutive().diff()
    assert torch.equal(sizes, official.long())


def merged_grids(grid_thw: Tensor, merge: int) -> list[Grid]:
    return [Grid(t, h // merge, w // merge) for t, h, w in grid_thw.tolist()]


def tiny_vip() -> VIP:
    torch.manual_seed(0)
    return VIP(6, 10, layers=2, width=16, cond_width=32, heads=2).eval()


def random_inputs(grids: list[Grid]) -> tuple[Tensor, list[Tensor]]:
    n = sum(geometry.token_counts(grids))
    return torch.randn(n, 6), [torch.randn(n, 10) for _ in range(2)]


@pytest.mark.parametrize("windowed", [False, True])
def test_images_do_not_see_each_other(windowed: bool) -> None:
    vip, grids = tiny_vip(), [Grid(1, 3, 5), Grid(1, 9, 2), Grid(2, 4, 4)]
    attn, conds = random_inputs(grids)
    ids = geometry.window_ids(grids, 3) if windowed else None
    together = vip(attn, conds, grids, ids)[0]
    start = 0
    for grid, count in zip(grids, geometry.token_counts(grids), strict=True):
        part = slice(start, start + count)
        ids = geometry.window_ids([grid], 3) if windowed else None
        alone = vip(attn[part], [c[part] for c in conds], [grid], ids)[0]
        assert_close(together[part], alone, atol=1e-5)
        start += count


def test_segments_restore_any_order() -> None:
    ids = torch.tensor([3, 1, 3, 7, 1, 1])
    segments = Segments(ids, "cpu")
    x = torch.randn(6, 2)
    assert torch.equal(segments.unpack(segments.pack(x)), x)
    assert segments.shape == (3, 3)
    assert segments.mask is not None
    assert segments.mask.sum().item() == 6


def test_equal_segments_need_no_mask() -> None:
    assert Segments(torch.tensor([0, 1, 0, 1]), "cpu").mask is None


def test_conditions_must_match_the_layers() -> None:
    attn, conds = random_inputs([Grid(1, 2, 2)])
    with pytest.raises(ValueError):
        tiny_vip()(attn, conds[:1], [Grid(1, 2, 2)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    vip, grids = tiny_vip(), [Grid(1, 3, 5), Grid(1, 4, 4)]
    attn, conds = random_inputs(grids)
    exact = vip(attn, conds, grids)
    half = vip.to(dtype)(attn.to(dtype), [c.to(dtype) for c in conds], grids)
    assert half.dtype == dtype
    assert_close(half.float(), exact, atol=0.1)
