"""The module that ships beside the zoo model."""

import json
from pathlib import Path

import torch

import foveate
from foveate import scenes, zoo
from foveate.glimpse import load_module
from foveate.glimpse.module import WEIGHTS
from foveate.inference.batches import build_batch
from foveate.inference.loading import load
from foveate.methods import GlimpsePrune

SHIPPED = Path(zoo.resolve(zoo.DEFAULT)) / "glimpse"


def test_small_and_without_private_paths() -> None:
    assert (SHIPPED / WEIGHTS).stat().st_size < 1_000_000
    for name in ("config.json", "training.json", "README.md"):
        text = (SHIPPED / name).read_text(encoding="utf-8")
        assert text.strip()
        assert not any(place in text for place in ("/tmp", "/home", "/root", "/work", "More Information Needed"))
    assert json.loads((SHIPPED / "config.json").read_text(encoding="utf-8"))["base_model"] == zoo.DEFAULT


def test_finds_what_a_question_asks_about() -> None:
    """Answers stay right while most tokens go, and what stays is where the evidence is."""
    model, processor = load(zoo.DEFAULT, dtype=torch.float32)
    load_module(SHIPPED).check_fits(model)
    samples = [sample for sample in scenes.load("val", 24) if sample.type == "shape_of"][:2]
    inputs = build_batch(model, processor, [(sample.images, sample.question) for sample in samples])
    start = inputs["input_ids"].shape[1]

    def answered(method: GlimpsePrune | None) -> tuple[list[str], foveate.Trace]:
        with foveate.prune(model, method) as trace:
            ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        return [t.strip() for t in processor.batch_decode(ids[:, start:], skip_special_tokens=True)], trace

    texts, trace = answered(GlimpsePrune(SHIPPED))
    assert texts == answered(None)[0] == [sample.answer for sample in samples]
    layers = model.config.text_config.num_hidden_layers
    shares = [len(group.alive_at(layers)) / len(group.columns) for group in trace.last.groups]
    assert max(shares) < 0.5
    assert trace.last.kv_bytes < 0.6 * trace.last.kv_bytes_unpruned
