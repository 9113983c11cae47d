"""ViTCoP against the numbers of the official implementation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration

import foveate
from foveate.core.view import ModelInfo
from foveate.maths.clustering import density_peaks
from foveate.maths.copruning import select_and_merge
from foveate.methods import ViTCoP
from foveate.methods.vitcop import stage_budgets
from tests.conftest import Golden

TOLERANCE = {"atol": 2e-4, "rtol": 1e-4}


def split(tensors: dict[str, Tensor], case: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{case}/"): v for k, v in tensors.items() if k.startswith(f"{case}/")}


def test_clusters(golden: Golden) -> None:
    cases = json.loads((golden / "vitcop_vic" / "cases.json").read_text())
    tensors = load_file(golden / "vitcop_vic" / "cases.safetensors")
    for name, case in cases.items():
        if case.get("tie_dependent"):
            continue
        t = split(tensors, name)
        labels = density_peaks(t["X"], t.get("pos"), case["percentage"], case["dc"], case["k"])
        assert torch.equal(labels, t["labels"].long()), name


def test_selection_and_merging(golden: Golden) -> None:
    cases = json.loads((golden / "vitcop_stage2" / "cases.json").read_text())
    tensors = load_file(golden / "vitcop_stage2" / "cases.safetensors")
    for name, case in cases.items():
        if case.get("tie_dependent"):
            continue
        t = split(tensors, name)
        found = select_and_merge(t["key_norm"], t["labels"].long(), case["R"], add_target=True)
        start = case["visual_start"]
        assert torch.equal(found.index + start, t["sorted_positions"].long()), name
        merge = found.merge
        assert merge is not None
        merged = found.index[merge.target.unique()] + start
        assert torch.equal(merged, t["merged_positions"].long().sort().values), name
        assert groups(found) == official_groups(t, start), name
        visual = t["hidden"][start : start + len(t["labels"])] if "hidden" in t else None
        if visual is not None:
            torch.testing.assert_close(found.apply(visual), t["visual_tokens_out"], **TOLERANCE)


def groups(found: foveate.Selection) -> dict[int, list[int]]:
    """Members by target (the added target itself, weight 1, is not a member)."""
    result: dict[int, set[int]] = {}
    assert found.merge is not None
    for target, source in zip(found.merge.entry_target.tolist(), found.merge.source.tolist(), strict=True):
        result.setdefault(int(found.index[target]), set()).add(source)
    return {k: sorted(v) for k, v in result.items()}


def official_groups(t: dict[str, Tensor], start: int) -> dict[int, list[int]]:
    members = t["merged_groups"].long().split(t["merged_group_sizes"].long().tolist())
    offset = start if int(t["merged_groups"].min()) >= start else 0
    return {
        int(position) - start: sorted((m - offset).tolist())
        for position, m in zip(t["merged_positions"].long(), members, strict=True)
    }


def test_budgets(golden: Golden) -> None:
    budgets = json.loads((golden / "vitcop_budgets" / "budgets.json").read_text())
    layers = budgets["llm_layers_in_formula"]
    info = ModelInfo("llava", layers, 24, True)
    for case in budgets["published"]:
        method = ViTCoP(keep=case["pruned_ratio"])
        wanted = (case["stage1_tokens"], case["shallow_token_num"], case["deep_token_num"])
        assert method.counts(info, case["image_tokens"]) == wanted
        assert method.layers(info) == (budgets["shallow_pruned_layer"], budgets["deep_pruned_layer"])
        assert method.preset(info, case["pruned_ratio"]) == (case["vision_keep_ratio"], case["cluster_percentage"])
        assert int(method.preset(info, case["pruned_ratio"])[1] * wanted[0]) == case["num_cluster_centers"]
        exact = ViTCoP(keep=round(case["pruned_ratio"] * 9) / 9)
        assert exact.counts(info, case["image_tokens"]) == wanted
    for case in budgets["other"]:
        found = stage_budgets(
            case["pruned_ratio"], case["vision_keep_ratio"], case["stage1_tokens"], layers,
            case["shallow_pruned_layer"], case["deep_pruned_layer"], 5,
        )  # fmt: skip
        assert found == (case["shallow_token_num"], case["deep_token_num"])


@pytest.fixture(scope="module")
def end_to_end(golden: Golden) -> tuple[Path, Any, dict[str, Any], dict[str, Tensor]]:
    folder = golden / "vitcop_llava"
    model = LlavaForConditionalGeneration.from_pretrained(folder / "base", dtype=torch.float32)
    model.generation_config.eos_token_id = None
    tensors = load_file(folder / "inputs.safetensors")
    inputs = {k: v for k, v in tensors.items() if not k.startswith("official")}
    return folder, model.eval(), json.loads((folder / "spec.json").read_text()), inputs


def test_end_to_end(end_to_end: tuple[Path, Any, dict[str, Any], dict[str, Tensor]]) -> None:
    folder, model, spec, inputs = end_to_end
    for name, run in spec["runs"].items():
        expected = load_file(folder / f"{name}.safetensors")
        method = ViTCoP(
            keep=run["pruned_ratio"], vision_keep=run["vision_keep_ratio"],
            cluster_fraction=run["cluster_percentage"], shallow_layer=run["shallow_pruned_layer"],
            deep_layer=run["deep_pruned_layer"], kernel_width=run["dc"], reach=run["k"], official=True,
        )  # fmt: skip
        steps = expected["generated_ids"].shape[1]
        with foveate.prune(model, method) as trace:
            out = model.generate(
                **inputs, max_new_tokens=steps, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        assert torch.equal(out.sequences[:, -steps:], expected["generated_ids"].long()), name
        torch.testing.assert_close(torch.stack(out.logits, 1), expected["generate.logits"], **TOLERANCE)
        check_kept(trace.to_dict(), expected, spec["visual_start"], run)
        lengths = [out.past_key_values.physical_length(i) - (steps - 1) for i in range(len(out.past_key_values))]
        assert lengths == expected["kv_len_per_layer"].tolist()


def check_kept(seen: dict[str, Any], expected: dict[str, Tensor], start: int, run: dict[str, Any]) -> None:
    layers = seen["rows"][0]["layers"]
    for layer, key in ((0, "stage1"), (run["shallow_pruned_layer"], "shallow"), (run["deep_pruned_layer"], "deep")):
        wanted = (expected[f"{key}.kept_patches"].long().sort().values + start).tolist()
        assert layers[layer]["positions"] == wanted, key
