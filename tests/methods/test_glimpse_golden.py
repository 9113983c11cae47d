"""GlimpsePrune's inference against the numbers of the official implementation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

import foveate
from foveate.core.view import View
from foveate.glimpse import GlimpseModule, load_official
from foveate.methods import GlimpsePrune
from foveate.training.evidence import EvidenceBoxes
from tests.conftest import Golden

TOLERANCE = {"atol": 2e-4, "rtol": 1e-4}
FAMILIES = ("gp_qwen", "gp_llava")
OPTIONS = {
    "reduce_threshold": "threshold", "max_remain_ratio": "max_keep", "min_remain_num": "min_keep",
    "anchor_positions": "anchors",
}  # fmt: skip


class Watched(GlimpsePrune):
    """Remembers the logits it computed, by row."""

    def logits(self, view: View) -> Tensor:
        found = super().logits(view)
        self.__dict__.setdefault("seen", {})[view.row] = found
        self.__dict__.setdefault("attention", {})[view.row] = view.probe(
            self.glimpse.config.selected_layers[0], not self.glimpse.config.use_attention_logits
        )
        return found


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, golden: Golden) -> tuple[Path, Any, GlimpseModule]:
    folder = golden / request.param
    model = AutoModelForImageTextToText.from_pretrained(folder / "base", dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return folder, model, load_official(folder / "new_modules")


def inputs_of(folder: Path) -> dict[str, Tensor]:
    tensors = load_file(folder / "inputs.safetensors")
    wanted = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw", "mm_token_type_ids")
    return {k: tensors[k] for k in wanted if k in tensors}


def steps_of(expected: dict[str, Tensor]) -> int:
    """How many tokens the official code generated."""
    return next(v.shape[1] for k, v in expected.items() if k.endswith("generated_ids") and "unpruned" not in k)


def run(model: Any, inputs: dict[str, Tensor], method: GlimpsePrune, steps: int) -> tuple[Any, foveate.Trace]:
    with foveate.prune(model, method) as trace:
        out = model.generate(
            **inputs, max_new_tokens=steps, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    return out, trace


def kept(trace: foveate.Trace, row: int) -> list[bool]:
    group = next(g for g in trace.last.groups if g.row == row)
    mask = torch.zeros(len(group.columns), dtype=torch.bool)
    mask[group.steps[-1].alive] = True
    return mask.tolist()


def cases(folder: Path) -> list[str]:
    inputs = sorted(folder.glob("*/inputs.safetensors"))
    return [file.parent.name for file in inputs if (file.parent / "outputs_ratio.safetensors").exists()]


@pytest.mark.parametrize("capped", [False, True])
def test_end_to_end(case: tuple[Path, Any, GlimpseModule], capped: bool) -> None:
    folder, model, module = case
    cap = json.loads((folder / "spec.json").read_text())["max_remain_ratio_variant"] if capped else None
    for name in cases(folder):
        inputs = inputs_of(folder / name)
        file = folder / name / ("outputs_ratio.safetensors" if capped else "outputs.safetensors")
        expected = load_file(file)
        method = Watched(module, max_keep=cap)
        out, trace = run(model, inputs, method, steps_of(expected))
        rows = inputs["input_ids"].shape[0]
        for row in range(rows):
            check_row(name, row, expected, method, trace)
        check_cache(out.past_key_values, expected, rows)
        check_tokens(out, expected, rows, name)


def check_row(name: str, row: int, expected: dict[str, Tensor], method: Any, trace: Any) -> None:
    assert kept(trace, row) == expected[f"keep_mask.{row}"].bool().tolist(), name
    if f"vip_logits.{row}" in expected:
        torch.testing.assert_close(method.__dict__["seen"][row], expected[f"vip_logits.{row}"], **TOLERANCE)
    if f"glimpse_attn.{row}" in expected:
        attention = expected[f"glimpse_attn.{row}"].reshape(len(method.__dict__["seen"][row]), -1)
        torch.testing.assert_close(method.__dict__["attention"][row][:, -1].T, attention, **TOLERANCE)


def check_cache(cache: Any, expected: dict[str, Tensor], rows: int) -> None:
    lengths = expected["kv_len_per_layer"].tolist()
    decoded = steps_of(expected) - 1
    assert [cache.physical_length(i) - decoded for i in range(len(cache))] == lengths
    for layer in range(len(cache)):
        if f"kv.key.{layer}" not in expected:
            continue
        for name, found in (("key", cache.layers[layer].keys), ("value", cache.layers[layer].values)):
            wanted = expected[f"kv.{name}.{layer}"]
            found = found[:, :, : lengths[layer]]
            for row in range(rows):
                real = cache.kept[layer].index[row] >= 0
                torch.testing.assert_close(found[row][:, real], wanted[row][:, real], **TOLERANCE)


def check_tokens(out: Any, expected: dict[str, Tensor], rows: int, name: str) -> None:
    tokens, logits = out.sequences[:, -steps_of(expected) :], torch.stack(out.logits, 1)
    torch.testing.assert_close(logits[:, 0], expected["first_logits"], **TOLERANCE)
    if "generated_ids" in expected:
        assert torch.equal(tokens, expected["generated_ids"].long()), name
        torch.testing.assert_close(logits, expected["generate.logits"], **TOLERANCE)
        return
    for row in range(rows):  # batched decoding of the official code is wrong: the rows run alone are the truth
        if f"row{row}.generated_ids" in expected:
            assert torch.equal(tokens[row : row + 1], expected[f"row{row}.generated_ids"].long()), name
            torch.testing.assert_close(logits[row : row + 1], expected[f"row{row}.generate.logits"], **TOLERANCE)


def test_variants(case: tuple[Path, Any, GlimpseModule]) -> None:
    folder, model, module = case
    variants = json.loads((folder / "variants" / "variants.json").read_text())
    expected = load_file(folder / "variants" / "outputs.safetensors")
    inputs = inputs_of(folder / "single")
    for name, changed in variants.items():
        if "use_ref_masks" in changed:
            continue  # a given mask instead of the predictor: the next test
        config, options = module.config, {}
        for key, value in changed.items():
            if key in OPTIONS:
                options[OPTIONS[key]] = tuple(value) if isinstance(value, list) else value
            elif key in ("reduce_layer", "le_layers", "use_attention_logits"):
                if key == "reduce_layer":  # published code takes any larger number for the last layer
                    value = min(value, config.num_hidden_layers - 1)
                config = dataclasses.replace(config, **{key: value})
        varied = GlimpseModule(config).eval()
        state = module.state_dict()
        if "le_layers" in changed:  # the official code keeps the first entries
            state["embeddings"] = state["embeddings"][: len(changed["le_layers"])]
        varied.load_state_dict(state)
        method = Watched(varied, **options)
        get = {k.removeprefix(f"{name}/"): v for k, v in expected.items() if k.startswith(f"{name}/")}
        out, trace = run(model, inputs, method, steps_of(get))
        check_row(name, 0, get, method, trace)
        check_cache(out.past_key_values, get, 1)
        assert torch.equal(out.sequences[:, -steps_of(get) :], get["generated_ids"].long()), name
        torch.testing.assert_close(out.logits[0], get["first_logits"], **TOLERANCE)


def test_a_given_mask_in_place_of_the_predictor(case: tuple[Path, Any, GlimpseModule]) -> None:
    """The variant `ref_masks`: no glimpse token, no predictor, pruning after layer K."""
    folder, model, module = case
    expected = load_file(folder / "variants" / "outputs.safetensors")
    get = {k.removeprefix("ref_masks/"): v for k, v in expected.items() if k.startswith("ref_masks/")}
    if not get:
        pytest.skip(f"{folder.name} has no such variant")
    height, width = get["ref_mask"].shape
    boxes = [  # one inside every cell of the mask
        ((x + 0.25) / width, (y + 0.25) / height, (x + 0.75) / width, (y + 0.75) / height)
        for y, x in get["ref_mask"].nonzero().tolist()
    ]
    method = EvidenceBoxes([[boxes]], module.config.reduce_layer)
    out, trace = run(model, inputs_of(folder / "single"), method, get["generated_ids"].shape[1])
    assert kept(trace, 0) == get["keep_mask.0"].bool().tolist()
    assert torch.equal(out.sequences[:, -get["generated_ids"].shape[1] :], get["generated_ids"].long())
    torch.testing.assert_close(out.logits[0], get["first_logits"], **TOLERANCE)
