"""Rows as batches for training."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil

from foveate import zoo
from foveate.core.grid import Grid
from foveate.data.rows import Row
from foveate.errors import DataError
from foveate.families.layout import ImageShape
from foveate.families.llava import Llava
from foveate.inference.processor import ImageTextProcessor, load_processor
from foveate.training.glimpse.collate import Collator
from foveate.training.losses import IGNORE


class FakeFamily(SimpleNamespace):
    """What a collator asks of a family adapter."""

    def incoming(self, kwargs: dict) -> dict[str, list[ImageShape]]:
        if "image_grid_thw" in kwargs:
            return {"image": [ImageShape((Grid(t, h // 2, w // 2),)) for t, h, w in kwargs["image_grid_thw"].tolist()]}
        pixels = kwargs["pixel_values"]
        return {"image": [ImageShape((Grid(1, pixels.shape[-2] // 14, pixels.shape[-1] // 14),))] * len(pixels)}


@pytest.fixture(scope="module")
def qwen_collator() -> Collator:
    path = zoo.resolve(zoo.DEFAULT)
    tokenizer = AutoTokenizer.from_pretrained(path)
    token_ids = {"image": tokenizer.convert_tokens_to_ids("<|image_pad|>")}
    family = FakeFamily(token_ids=token_ids, wants_token_types=True, default_template=None)
    return Collator(family, load_processor(path, family), system="Be brief.")


def example(images: int = 1, question: str = "Q?", answer: str | None = "42", size: tuple = (112, 168)) -> Row:
    box = (0.0, 0.0, 0.24, 0.1)
    return Row(7, (Image.new("RGB", size),) * images, question, (answer,) if answer else (), (((box,),) * images))


def test_batches(qwen_collator: Collator) -> None:
    short, long = example(), example(images=2, question="A much longer question?", answer="blue star")
    batch = qwen_collator([short, long])
    tokenizer, image = qwen_collator.tokenizer, qwen_collator.family.token_ids["image"]
    ids, labels, mask = batch["input_ids"], batch["labels"], batch["attention_mask"]
    assert mask[0, 0] == 0
    assert mask[:, -1].all()
    assert mask[1].all()
    assert tokenizer.decode(labels[0][labels[0] != IGNORE]) == "42<|im_end|>"
    assert torch.equal(ids[labels != IGNORE], labels[labels != IGNORE])
    assert (ids == image).sum(1).tolist() == [24, 48]
    assert torch.equal(batch["mm_token_type_ids"] == 1, ids == image)
    text = tokenizer.decode(ids[0][mask[0].bool()]).replace("<|image_pad|>", "")
    assert text.startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<|vision_start|><|vision_end|>Q?"
    )
    assert [m.shape for m in batch["ref_masks"]] == [(24,), (48,)]
    assert batch["ref_masks"][0].view(6, 4).int().tolist() == [[1, 0, 0, 0]] + [[0] * 4] * 5
    assert len(batch["image_grid_thw"]) == 3


def test_prompts_end_where_answers_begin(qwen_collator: Collator) -> None:
    full, prompt = qwen_collator([example()]), qwen_collator.prompts([example(answer=None)])
    assert "labels" not in prompt
    count = prompt["input_ids"].shape[1]
    assert torch.equal(full["input_ids"][:, :count], prompt["input_ids"])
    assert full["labels"][0, count] != IGNORE
    assert full["labels"][0, count - 1] == IGNORE


def test_placeholder_in_a_question(qwen_collator: Collator) -> None:
    with pytest.raises(DataError, match=r"row 7.*placeholders"):
        qwen_collator([example(question="What is <|image_pad|>?")])


def test_llava_prompts_and_cropped_boxes() -> None:
    tokenizer = AutoTokenizer.from_pretrained(zoo.resolve(zoo.DEFAULT))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    token_ids = {"image": tokenizer.convert_tokens_to_ids("<image>")}
    family = FakeFamily(token_ids=token_ids, wants_token_types=False)
    images = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    collator = Collator(family, ImageTextProcessor(images, tokenizer, family, Llava.default_template))
    left = Row(1, (Image.new("RGB", (224, 112)),), "Q?", ("A",), ((((0.0, 0.0, 0.2, 1.0),),)))
    middle = Row(2, (Image.new("RGB", (224, 112)),), "Q?", ("A",), ((((0.26, 0.0, 0.37, 0.2),),)))
    batch = collator([left, middle])
    assert (batch["input_ids"] == token_ids["image"]).sum(1).tolist() == [16, 16]
    assert "mm_token_type_ids" not in batch
    # The centre crop shows the middle half: the left box is out of sight, the other in the top left corner.
    assert batch["ref_masks"][0].sum() == 0
    assert batch["ref_masks"][1].view(4, 4).int().tolist() == [[1, 0, 0, 0]] + [[0] * 4] * 3
    text = tokenizer.decode(batch["input_ids"][0]).replace("<image>", "")
    assert text == "USER: \nQ? ASSISTANT: A<|im_end|>"
    answer = batch["labels"][0][batch["labels"][0] != IGNORE]
    assert tokenizer.decode(answer) == " A<|im_end|>"
