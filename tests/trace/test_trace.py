"""What a trace says, and how it looks."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import foveate
from foveate.errors import InputError
from foveate.methods import Downsample, Random, ViTCoP
from foveate.trace.text import chain, stages
from tests.reference import Drop, generate
from tests.tiny import IMAGE, Tiny

ROWS = [[3, (4, 4), 5], [2, (4, 6), 3, (2, 4), 4], [7]]


def prefill(tiny: Tiny, method: foveate.Method | None, rows: list = ROWS) -> foveate.Trace:
    with foveate.prune(tiny.model, method) as trace:
        generate(tiny.model, tiny.batch(rows), 2)
    return trace


def test_to_dict_is_json_with_the_right_columns(tiny: Tiny) -> None:
    seen = json.loads(json.dumps(prefill(tiny, Drop((0, 3))).to_dict()))
    inputs = tiny.batch(ROWS)
    assert [row["padding"] for row in seen["rows"]] == [int((mask == 0).sum()) for mask in inputs["attention_mask"]]
    for row, traced in enumerate(seen["rows"]):
        assert len(traced["layers"]) == 6
        first, last = traced["layers"][0]["positions"], traced["layers"][-1]["positions"]
        assert set(last) <= set(first)
        assert traced["kept"] == last
        assert (inputs["input_ids"][row, first] == IMAGE).all()
    assert seen["rows"][2]["layers"][0]["positions"] == []
    total = sum(len(r["layers"][3]["positions"]) for r in seen["rows"])
    assert seen["alive_per_layer"][3] == total


def test_unpruned_runs_are_traced_too(tiny: Tiny) -> None:
    trace = prefill(tiny, None)
    assert trace.keep_ratio == 1.0
    assert trace.kv_bytes == trace.last.kv_bytes_unpruned > 0
    assert trace.last.prefill.ms > 0
    assert trace.last.vision.ms > 0


def test_merges_name_target_and_sources(tiny: Tiny) -> None:
    seen = prefill(tiny, Downsample(0.25), [[3, (4, 4), 5]]).to_dict()
    (row,) = seen["rows"]
    columns = row["images"][0]["columns"]
    assert [m["layer"] for m in row["merges"]] == [0] * 4
    assert sorted(s for m in row["merges"] for s in m["sources"]) == columns
    assert [m["target"] for m in row["merges"]] == row["layers"][0]["positions"]
    top_left = [columns[i] for i in (0, 1, 4, 5)]
    assert row["merges"][0] == {"layer": 0, "target": columns[5 - 1], "sources": top_left}


def test_text(tiny: Tiny) -> None:
    trace = prefill(tiny, ViTCoP(0.3, saliency="received", shallow="key_norm", deep="key_norm"), [[3, (4, 4), 5]])
    text = str(trace)
    assert text.startswith("vitcop(keep=0.3")
    for word in ("visual tokens  16 ->", "before the LLM", "merged", "KV cache", "selecting"):
        assert word in text
    assert [layer for layer, _, _ in stages(trace.last)] == [0, 1, 4]
    assert chain(trace.last).startswith("16 -> ")
    assert "no visual tokens" in str(prefill(tiny, ViTCoP(0.3), [[5]]))


def test_overlay_dims_what_was_dropped(tiny: Tiny) -> None:
    trace = prefill(tiny, Random(0.25), [[3, (4, 4), 5]])
    white = Image.new("RGB", (640, 640), "white")
    pixels = np.asarray(trace.overlay(white))[:640]
    clear = (pixels.reshape(4, 160, 4, 160, 3)[:, 40:120, :, 40:120] == 255).all((1, 3, 4))
    kept = trace.last.groups[0].steps[0].alive.tolist()
    assert np.flatnonzero(clear).tolist() == kept
    small = trace.overlay(Image.new("RGB", (30, 30)))
    assert small.width > 600  # enlarged, so that something can be seen
    with pytest.raises(InputError, match="no image 3"):
        trace.overlay(white, index=3)


def test_overlay_of_the_second_image_of_a_prompt(tiny_qwen: Tiny) -> None:
    trace = prefill(tiny_qwen, Random(2 / 3, layer=2), ROWS)  # a half after layer 2 of 6
    picture = trace.overlay(Image.new("RGB", (400, 200), "white"), row=1, index=1)
    clear = (np.asarray(picture)[:400, :800].reshape(2, 200, 4, 200, 3)[:, 60:140, :, 60:140] == 255).all((1, 3, 4))
    assert clear.sum() == 4
