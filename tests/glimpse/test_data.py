"""Reading and checking training data, and turning it into batches."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil

from foveate import zoo
from foveate.core.grid import Grid
from foveate.data.example import DataError, Example, Rules
from foveate.data.examples import load_examples
from foveate.families.layout import ImageShape
from foveate.families.llava import Llava
from foveate.inference.processor import ImageTextProcessor, load_processor
from foveate.scenes.splits import load as load_scenes
from foveate.training.glimpse.collate import Collator
from foveate.training.losses import IGNORE

WriteTable = Callable[..., Path]
SIZE = (56, 84)


@pytest.fixture
def table(tmp_path: Path) -> WriteTable:
    """Writes rows as JSON lines beside an image `a.png` of 56 x 84 pixels; rows are changes of a good one."""
    Image.new("RGB", SIZE, "red").save(tmp_path / "a.png")

    def write(*changes: dict, name: str = "data.jsonl") -> Path:
        good = {"image": "a.png", "question": "What?", "answer": "Red", "boxes": [[0, 0, 28, 28]]}
        path = tmp_path / name
        path.write_text("".join(json.dumps(good | change) + "\n" for change in changes))
        return path

    return write


def test_pixel_boxes_are_normalised(table: WriteTable) -> None:
    example = load_examples(table({}), Rules())[0]
    assert example.boxes == (((0.0, 0.0, 0.5, 1 / 3),),)
    assert (example.row, example.question, example.answer) == (1, "What?", "Red")
    assert example.load_images()[0].size == SIZE


@pytest.mark.parametrize(
    ("box_format", "box"),
    [("normalized", [0, 0, 0.5, 0.25]), ("thousandths", [0, 0, 500, 250]), ("pixel_xywh", [0, 0, 28, 21])],
)
def test_box_formats(table: WriteTable, box_format: str, box: list) -> None:
    example = load_examples(table({"boxes": [box]}), Rules(box_format=box_format))[0]
    assert example.boxes == (((0.0, 0.0, 0.5, 0.25),),)


BAD_ROWS = {
    "image is missing": ({"image": "no.png"}, r"no\.png does not exist"),
    "image is broken": ({"image": "broken.png"}, r"broken\.png cannot be read"),
    "image is cut off": ({"image": "cut.png"}, r"cut\.png cannot be read"),
    "no image": ({"image": None}, "no image"),
    "box outside the image": ({"boxes": [[0, 0, 57, 10]]}, "outside the image"),
    "box is empty": ({"boxes": [[5, 5, 5, 9]]}, "is empty"),
    "box has three numbers": ({"boxes": [[1, 2, 3]]}, "four numbers"),
    "no boxes": ({"boxes": None}, "no evidence boxes"),
    "answer is empty": ({"answer": " "}, "answer is empty"),
    "question is missing": ({"question": None}, "question is empty"),
    "boxes of another number of images": ({"boxes": [[[0, 0, 9, 9]], [[0, 0, 9, 9]]]}, "given for 2 images"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_stop_the_run_or_are_skipped(table: WriteTable, tmp_path: Path, case: str) -> None:
    (tmp_path / "broken.png").write_bytes(b"not an image")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) - 30])
    change, complaint = BAD_ROWS[case]
    path = table(change)
    good = table({}, name="good.jsonl").read_text()
    path.write_text(good + path.read_text() + good)
    with pytest.raises(DataError, match=f"(?s)1 of 3 rows.*row 2: .*{complaint}"):
        load_examples(path, Rules())
    examples = load_examples(path, Rules(skip_bad=True))
    assert examples.skipped == 1
    assert [e.row for e in examples] == [1, 3]


def test_nothing_usable(table: WriteTable) -> None:
    with pytest.raises(DataError, match="no usable row; the first problem: row 1"):
        load_examples(table({"answer": ""}), Rules(skip_bad=True))


def test_distillation_needs_neither_boxes_nor_answers(table: WriteTable) -> None:
    rules = Rules(needs_boxes=False, needs_answer=False)
    example = load_examples(table({"boxes": None, "answer": None}), rules)[0]
    assert example.boxes is None
    assert example.answer is None


def test_several_images(table: WriteTable) -> None:
    path = table({"image": None, "images": ["a.png", "a.png"], "boxes": [[[0, 0, 28, 42]], []]})
    example = load_examples(path, Rules())[0]
    assert example.boxes == (((0.0, 0.0, 0.5, 0.5),), ())
    assert len(example.load_images()) == 2


def test_parquet_with_embedded_images(tmp_path: Path, table: WriteTable) -> None:
    import datasets

    table()
    rows = {
        "image": [str(tmp_path / "a.png")] * 2,
        "question": ["Q"] * 2,
        "answer": ["A"] * 2,
        "boxes": [[[0, 0, 28, 28]]] * 2,
    }
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    dataset.to_parquet(tmp_path / "data.parquet")
    examples = load_examples(tmp_path / "data.parquet", Rules(), limit=1)
    assert len(examples) == 1
    assert examples[0].load_images()[0].getpixel((0, 0)) == (255, 0, 0)


def test_unreadable_tables(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_examples(tmp_path / "no.jsonl", Rules())
    with pytest.raises(DataError, match="must be one of"):
        load_examples(tmp_path / "data.csv", Rules())
    (tmp_path / "bad.jsonl").write_text('{"image": "a.png"')
    with pytest.raises(DataError, match="cannot be read as json"):
        load_examples(tmp_path / "bad.jsonl", Rules())
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        load_examples(tmp_path / "bad.parquet", Rules())


def test_image_that_disappears_after_the_check(table: WriteTable, tmp_path: Path) -> None:
    example = load_examples(table({}), Rules())[0]
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match="row 1"):
        example.load_images()


def test_scenes() -> None:
    with pytest.raises(DataError, match="--limit"):
        load_examples("scenes", Rules())
    examples = load_examples("scenes:multi", Rules(), limit=3)
    expected = load_scenes("multi", 3)
    for example, sample in zip(examples, expected, strict=True):
        assert (example.question, example.answer) == (sample.question, sample.answer)
        assert example.boxes is not None
        assert [bool(b) for b in example.boxes] == [
            bool(sample.boxes) and i == sample.asked for i in range(len(sample.images))
        ]


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


def example(images: int = 1, question: str = "Q?", answer: str | None = "42", size: tuple = (112, 168)) -> Example:
    box = (0.0, 0.0, 0.24, 0.1)
    return Example(7, (Image.new("RGB", size),) * images, question, answer, (((box,),) * images))


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
    left = Example(1, (Image.new("RGB", (224, 112)),), "Q?", "A", ((((0.0, 0.0, 0.2, 1.0),),)))
    middle = Example(2, (Image.new("RGB", (224, 112)),), "Q?", "A", ((((0.26, 0.0, 0.37, 0.2),),)))
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
