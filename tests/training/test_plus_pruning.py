"""What rollouts are pruned by: evidence boxes, the module, several images, LLaVA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import foveate
from foveate.engine.replay import Replay
from foveate.errors import ConfigurationError
from foveate.glimpse import GlimpseModule
from foveate.inference.batches import encode
from foveate.inference.loading import load
from foveate.methods import find
from foveate.training.evidence import EvidenceBoxes
from foveate.training.plus import run as plus
from foveate.training.plus.rollouts import Pruning
from recipes.zoo.export import export
from recipes.zoo.tokenizer import IMAGE, build

from .plus import QUICK, picture


@pytest.fixture(scope="module")
def llava_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random LLaVA with the zoo's tokenizer and a CLIP image processor."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    tokenizer = build()
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=56, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_id=image, image_seq_length=16)
    )
    folder = tmp_path_factory.mktemp("llava")
    export(model, tokenizer, folder, "llava", 56)
    return folder


def test_llava_and_several_images_in_a_row(llava_base: Path, base: Path, data: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in data.open()]
    merged = [
        {**row, "image": None, "images": [row["image"], other["image"]], "boxes": [row["boxes"], other["boxes"]]}
        for row, other in zip(rows, rows[1:] + rows[:1], strict=True)
    ]
    path = data.parent / "pairs.jsonl"
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if v is not None}) + "\n" for row in merged))
    for folder, source in ((llava_base, data), (llava_base, path), (base, path)):
        out = tmp_path / f"{folder.name}-{source.stem}"
        settings = plus.PlusSettings(str(folder), str(source), out, arguments={**QUICK, "max_steps": 1}, layer=1)
        plus.train(settings)
        log = json.loads((out / "training.json").read_text())["log"]
        assert 0 < log[0]["kept_share"] < 1


def test_rows_with_and_without_boxes_share_a_batch(base: Path, module: Path) -> None:
    model, processor = load(str(base))
    chats = [[{"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "a?"}]}]] * 2
    inputs = encode(model, processor, chats)
    samples = [{"boxes": [[[0.0, 0.0, 0.3, 0.3]]], "row": 1}, {"boxes": None, "row": 2}]
    own = GlimpseModule.from_pretrained(module).eval()
    method = Pruning("boxes", own.config.reduce_layer, own).method(samples, None)
    assert method is not None
    with torch.no_grad(), foveate.prune(model, method) as trace:
        model(**inputs)
    with torch.no_grad(), foveate.prune(model, find("glimpse_prune")(own)) as alone:
        model(**inputs)
    rows, expected = trace.to_dict()["rows"], alone.to_dict()["rows"]
    assert rows[1]["kept"] == expected[1]["kept"]
    first = rows[0]["images"][0]["columns"]
    assert [first.index(column) for column in rows[0]["kept"]] == [0, 1, 4, 5]  # a grid of 5 x 4


def test_evidence_boxes_must_fit_the_batch(base: Path) -> None:
    model, processor = load(str(base))
    chat = [{"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "a?"}]}]
    inputs = encode(model, processor, [chat])
    for boxes, message in (([], "rows"), ([[[], []]], "1 image")):
        with pytest.raises(ConfigurationError, match=message), foveate.prune(model, EvidenceBoxes(boxes, 1)):
            model(**inputs)
    with foveate.prune(model, EvidenceBoxes([[[]]], 1)) as trace:  # no evidence: no visual token is left
        out = model.generate(**inputs, max_new_tokens=3)
    assert out.shape[0] == 1
    assert trace.to_dict()["rows"][0]["kept"] == []
    assert Replay.name == "replay"
