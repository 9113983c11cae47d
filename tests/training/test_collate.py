"""Rows as batches for training, with the models that ship."""

from functools import cache

import pytest
import torch
from PIL import Image

from foveate.data.rows import Row
from foveate.errors import DataError
from foveate.families import adapt
from foveate.glimpse import GlimpseModule
from foveate.inference.answer import Asker
from foveate.inference.chats import user
from foveate.inference.loading import load
from foveate.training.evidence import evidence
from foveate.training.glimpse.collate import Collator
from foveate.training.glimpse.inputs import prepare
from foveate.training.glimpse.model import GlimpseForTraining
from foveate.training.losses import IGNORE

QWEN, LLAVA = "foveate/scenes-qwen2_5_vl", "foveate/scenes-llava"


@cache
def loaded(name: str) -> tuple[Collator, Asker]:
    model, processor = load(name)
    return Collator(adapt(model), processor, system="Be brief."), Asker(model, processor)


def example(images: int = 1, question: str = "Q?", answer: str | None = "42", size: tuple = (112, 168)) -> Row:
    box = (0.0, 0.0, 0.24, 0.1)
    return Row(7, (Image.new("RGB", size),) * images, question, (answer,) if answer else (), (((box,),) * images))


def test_batches() -> None:
    collator, _ = loaded(QWEN)
    short, long = example(), example(images=2, question="A much longer question?", answer="blue star 12345")
    batch = collator([short, long])
    tokenizer, image = collator.tokenizer, collator.family.token_ids["image"]
    ids, labels, mask = batch["input_ids"], batch["labels"], batch["attention_mask"]
    assert mask[0, 0] == 0  # prompts are padded on their left, answers on their right
    assert mask[0, -1] == 0
    assert mask[1].all()
    assert tokenizer.decode(labels[0][labels[0] != IGNORE]) == "42<|im_end|>"
    assert torch.equal(ids[labels != IGNORE], labels[labels != IGNORE])
    assert (ids == image).sum(1).tolist() == [24, 48]
    assert torch.equal(batch["mm_token_type_ids"] == 1, ids == image)
    text = tokenizer.decode(ids[0][mask[0].bool()]).replace("<|image_pad|>", "")
    assert text.startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<|vision_start|><|vision_end|>Q?"
    )
    assert batch["boxes"] == [[[(0.0, 0.0, 0.24, 0.1)]], [[(0.0, 0.0, 0.24, 0.1)]] * 2]
    assert len(batch["image_grid_thw"]) == 3


def masks(collator: Collator, rows: list[Row]) -> list[torch.Tensor]:
    """Evidence masks of rows, as training sees them."""
    batch = collator(rows)
    boxes = batch.pop("boxes")
    prompts = prepare(collator.family, batch, (0,), 1)
    return [evidence(own, images, row) for row, (own, images) in enumerate(zip(boxes, prompts.images, strict=True))]


def test_boxes_mark_tokens() -> None:
    collator, _ = loaded(QWEN)
    one, two = masks(collator, [example(), example(images=2)])
    assert one.view(6, 4).int().tolist() == [[1, 0, 0, 0]] + [[0] * 4] * 5
    assert torch.equal(two, torch.cat([one, one]))


@pytest.mark.parametrize("name", [QWEN, LLAVA])
def test_prompts_are_those_of_inference(name: str) -> None:
    collator, asker = loaded(name)
    rows = [example(answer=None), example(question="A longer question?")]
    prompts, full = collator.prompts(rows), collator([row_with_answer(row) for row in rows])
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    chats = [[system, user(row.question, row.images)] for row in rows]
    expected = asker.inputs(chats)
    assert prompts.keys() == expected.keys()
    for name_, value in expected.items():
        assert torch.equal(prompts[name_], value), name_
    count = prompts["input_ids"].shape[1]
    assert torch.equal(full["input_ids"][:, :count], prompts["input_ids"])
    assert (full["labels"][:, count] != IGNORE).all()
    assert (full["labels"][:, :count] == IGNORE).all()


def row_with_answer(row: Row) -> Row:
    return Row(row.number, row.images, row.question, ("42",), row.boxes)


def test_rows_that_cannot_be_prepared_are_named() -> None:
    collator, _ = loaded(QWEN)
    with pytest.raises(DataError, match=r"row 7.*image_pad"):
        collator([example(question="What is <|image_pad|>?")])
    bare = Row(9, (Image.new("RGB", (112, 112)),), "Q?", ("A",))
    with pytest.raises(DataError, match=r"row 9: evidence boxes"):
        collator([bare])


def test_llava_prompts_and_cropped_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    collator, _ = loaded(LLAVA)
    side = collator.processor.image_processor.crop_size["width"]
    monkeypatch.setattr(collator.processor.image_processor, "do_center_crop", True)
    monkeypatch.setattr(collator.processor.image_processor, "size", {"shortest_edge": side})
    wide = Image.new("RGB", (4 * side, 2 * side))
    left = Row(1, (wide,), "Q?", ("A",), ((((0.0, 0.0, 0.2, 1.0),),)))
    middle = Row(2, (wide,), "Q?", ("A",), ((((0.26, 0.0, 0.37, 0.2),),)))
    # The centre crop shows the middle half: the left box is out of sight, the other in the top left corner.
    out_of_sight, corner = masks(collator, [left, middle])
    assert not out_of_sight.any()
    edge = round(len(corner) ** 0.5)
    rows, columns = corner.view(edge, edge).nonzero().unbind(1)
    assert (int(rows.min()), int(columns.min())) == (0, 0)
    assert (int(rows.max()), int(columns.max())) == (int(0.2 * edge - 1e-6), int(0.24 * edge - 1e-6))


def test_batches_train() -> None:
    """Boxes as the collator gives them, through the whole model."""
    collator, asker = loaded(QWEN)
    module = GlimpseModule.for_model(asker.model)
    with GlimpseForTraining(asker.model, module) as training:
        found = training.train()(**collator([example(), example(images=2)]))
    assert found["recall"].shape == (2,)
