"""The processor that stands in without torchvision, against the stock code of both families."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import pipeline

import foveate
from foveate.errors import InputError
from foveate.inference.batches import encode
from foveate.inference.processor import load_processor
from foveate.methods import Random
from tests.inference.pairs import Pair, chat, picture, same

TEXT_OPTIONS: list[dict[str, Any]] = [
    {},
    {"return_tensors": "pt"},
    {"return_tensors": "np"},
    {"return_tensors": "pt", "padding": "max_length", "max_length": 700},
    {"return_tensors": "pt", "padding_side": "right", "padding": "max_length", "max_length": 700},
    {"return_tensors": "pt", "pad_to_multiple_of": 64, "padding": True},
    {"return_tensors": "pt", "add_special_tokens": False},
    {"return_tensors": "pt", "return_attention_mask": False},
    {"return_tensors": "pt", "return_special_tokens_mask": True},
    {"return_offsets_mapping": True},
    {"return_tensors": "pt", "truncation": True, "max_length": 4000},
    {"text_kwargs": {"padding": "max_length", "max_length": 700}, "return_tensors": "pt"},
    {"common_kwargs": {"return_tensors": "pt"}},
    {"return_tensors": "pt", "do_normalize": False},
    {"return_tensors": "pt", "images_kwargs": {"do_rescale": False}},
    {"return_tensors": "pt", "image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 1.0, 1.0]},
    {"return_tensors": "pt", "resample": 0},
    {"return_mm_token_type_ids": True, "return_tensors": "pt"},
]
SIZES: dict[str, list[dict[str, Any]]] = {
    "llava": [
        {"size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True},
        {"images_kwargs": {"crop_size": {"height": 336, "width": 336}, "do_center_crop": True}},
        {"size": {"height": 168, "width": 168}, "do_center_crop": False},
    ],
    "qwen2_5_vl": [
        {"size": {"shortest_edge": 3136, "longest_edge": 20000}},
        {"images_kwargs": {"size": {"shortest_edge": 100000, "longest_edge": 200000}}},
        {"min_pixels": 3136, "max_pixels": 20000},
        {"do_resize": True},
    ],
}


@pytest.mark.parametrize("number", range(len(TEXT_OPTIONS)))
def test_options_do_what_they_do_in_stock(pair: Pair, number: int) -> None:
    options = TEXT_OPTIONS[number]
    prompt = pair.ours.apply_chat_template(chat(picture()), add_generation_prompt=True)
    assert prompt == pair.stock.apply_chat_template(chat(picture()), add_generation_prompt=True)
    stock = pair.stock(images=[picture()], text=prompt, **copy.deepcopy(options))
    if "return_mm_token_type_ids" not in options and not pair.family.wants_token_types:
        stock.pop("mm_token_type_ids", None)
    stock.pop("token_type_ids", None)
    same(pair.ours(images=[picture()], text=prompt, **copy.deepcopy(options)), stock)


def test_sizes_do_what_they_do_in_stock(pair: Pair) -> None:
    for options in SIZES[pair.family.name]:
        prompt = pair.ours.apply_chat_template(chat(picture(), picture(90, 400, 1)), add_generation_prompt=True)
        given = {"images": [picture(), picture(90, 400, 1)], "text": prompt, "return_tensors": "pt"}
        ours = pair.ours(**given, **copy.deepcopy(options))
        same(ours, pair.stock(**given, **copy.deepcopy(options)))
        plain = pair.ours(**given)
        if "do_resize" not in options and pair.family.name == "qwen2_5_vl":
            assert ours["pixel_values"].shape != plain["pixel_values"].shape


def test_one_limit_of_pixels_alone_counts(qwen: Pair) -> None:
    prompt = qwen.ours.apply_chat_template(chat(picture()))
    sizes = [
        len(qwen.ours(images=picture(), text=prompt, return_tensors="pt", **options)["pixel_values"])
        for options in ({}, {"max_pixels": 10000}, {"min_pixels": 200000}, {"images_kwargs": {"max_pixels": 10000}})
    ]
    assert sizes[1] < sizes[0] < sizes[2]
    assert sizes[3] == sizes[1]


@pytest.mark.parametrize("tokenize", [False, True])
def test_conversations_are_stocks(pair: Pair, tokenize: bool) -> None:
    long = [*chat(picture()), {"role": "assistant", "content": [{"type": "text", "text": "A cat and"}]}]
    for chats, options in (
        (chat(picture()), {"add_generation_prompt": True}),
        (long, {"continue_final_message": True}),
        (long, {}),
        ([{"role": "system", "content": "Be brief."}, *chat(picture())], {}),
        ([chat(picture()), chat(text="Hello")], {"processor_kwargs": {"padding": True}}),
        (chat(picture()), {"chat_template": "{% for m in messages %}{{ m.role }}{% endfor %}" + pair.ours.image_token}),
        (chat(picture()), {"chat_template": "{{ mood }}" + pair.ours.image_token, "mood": "glad"}),
    ):
        kinds = {"tokenize": True, "return_dict": True, "return_tensors": "pt"} if tokenize else {}
        ours = pair.ours.apply_chat_template(copy.deepcopy(chats), **options, **kinds)
        stock = pair.stock.apply_chat_template(copy.deepcopy(chats), **options, **kinds)
        if tokenize:
            if not pair.family.wants_token_types:
                stock.pop("mm_token_type_ids", None)
            stock.pop("token_type_ids", None)
            same(ours, stock)
        else:
            assert ours == stock
    ids = pair.ours.apply_chat_template(chat(picture()), tokenize=True)
    assert ids == pair.stock.apply_chat_template(chat(picture()), tokenize=True)


def test_the_result_moves_and_has_attributes(pair: Pair) -> None:
    found = pair.ours.apply_chat_template(chat(picture()), tokenize=True, return_dict=True, return_tensors="pt")
    moved = found.to("cpu", torch.bfloat16)
    assert moved.pixel_values.dtype == torch.bfloat16
    assert moved.input_ids.dtype == torch.int64


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"paddding": True}, "paddding: there is no such option; did you mean padding"),
    ({"text_kwargs": {"max_lenght": 5}}, "text_kwargs: max_lenght"),
    ({"images_kwargs": {"sise": 5}}, "images_kwargs: sise"),
    ({"images_kwargs": {"padding": True}}, "images_kwargs: padding"),
    ({"text_kwargs": 5}, "text_kwargs is a dictionary"),
    ({"image_seq_length": 5}, "image_seq_length"),
    ({"videos_kwargs": {"fps": 2}}, "videos_kwargs"),
    ({"audio_kwargs": {"sampling_rate": 2}}, "audio_kwargs"),
    ({"fps": 2}, "fps"),
    ({"text_pair": "more"}, "text_pair"),
    ({"device": "cuda"}, r"device: .*\.to\('cuda'\)"),
    ({"return_tensors": "tf"}, "return_tensors='tf'"),
    ({"return_overflowing_tokens": True}, "return_overflowing_tokens"),
    ({"is_split_into_words": True}, "is_split_into_words"),
    ({"truncation": True, "max_length": 20}, "(?i)truncation"),
    ({"text_kwargs": {"truncation": True, "max_length": 20}}, "(?i)truncation"),
    ({"padding": "sideways"}, "(?i)padding"),
    ({"max_length": "long"}, "max_length"),
    ({"do_resize": "perhaps"}, "do_resize"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_options_without_effect_are_refused_by_name(pair: Pair, number: int) -> None:
    options, message = REFUSED[number]
    prompt = pair.ours.apply_chat_template(chat(picture()))
    with pytest.raises(InputError, match=message):
        pair.ours(images=picture(), text=prompt, **copy.deepcopy(options))
    with pytest.raises(InputError, match=message):
        pair.ours.apply_chat_template(chat(picture()), tokenize=True, processor_kwargs=copy.deepcopy(options))


def test_options_that_one_image_processor_does_not_read(qwen: Pair) -> None:
    prompt = qwen.ours.apply_chat_template(chat(picture()))
    for options in ({"crop_size": 224}, {"do_center_crop": True}, {"merge_size": 4}, {"do_pad": True}):
        with pytest.raises(InputError, match=next(iter(options))):
            qwen.ours(images=picture(), text=prompt, **options)
    qwen.ours(images=picture(), text=prompt, do_center_crop=False, merge_size=2)  # what it does anyway


def test_what_a_template_does_not_read_is_refused(pair: Pair) -> None:
    for options in ({"tools": [{"name": "x"}]}, {"documents": [{"title": "x"}]}, {"enable_thinking": True}):
        with pytest.raises(InputError, match=next(iter(options))):
            pair.ours.apply_chat_template(chat(picture()), **options)
    reading = "{{ tools[0].name }}" + pair.ours.image_token
    assert pair.ours.apply_chat_template(chat(), chat_template=reading, tools=[{"name": "x"}]).startswith("x")
    with pytest.raises(InputError, match="continue_final_message"):
        pair.ours.apply_chat_template(chat(), add_generation_prompt=True, continue_final_message=True)


def test_raw_arrays_keep_their_options(pair: Pair) -> None:
    array = np.asarray(picture()).astype(np.float32) / 255
    prompt = pair.ours.apply_chat_template(chat(picture()))
    options = {"do_rescale": False, "input_data_format": "channels_last", "return_tensors": "pt"}
    same(
        pair.ours(images=array, text=prompt, **options),
        {k: v for k, v in pair.stock(images=array, text=prompt, **options).items() if k != "token_type_ids"},
    )


def test_templates_by_name_and_none_at_all(qwen: Pair) -> None:
    ours = copy.copy(qwen.ours)
    ours.chat_template = {"default": "D" + ours.image_token, "other": "O" + ours.image_token}
    assert ours.apply_chat_template(chat()).startswith("D")
    assert ours.apply_chat_template(chat(), chat_template="other").startswith("O")
    ours.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        ours.apply_chat_template(chat())


def test_an_aspect_ratio_beyond_the_models(qwen: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.data.images.MAX_ASPECT", 1000)  # so that it is the processor that refuses
    with pytest.raises(InputError, match="aspect ratio"):
        qwen.ours.apply_chat_template(chat(picture(1000, 4)), tokenize=True)
    with pytest.raises(InputError, match="aspect ratio"):
        encode(qwen.model, qwen.stock, [chat(picture(1000, 4))])


def test_a_pipeline_for_both_families(pair: Pair) -> None:
    pipe = pipeline("image-text-to-text", model=pair.model, processor=pair.ours)
    greedy: dict[str, Any] = {"generate_kwargs": {"do_sample": False, "max_new_tokens": 4}}
    asked = chat(picture())
    inputs = encode(pair.model, pair.ours, [asked])
    ids = pair.model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    text = pair.ours.batch_decode(ids, skip_special_tokens=True)[0]
    (one,) = pipe(text=asked, return_full_text=False, **greedy)
    assert one["generated_text"] == text
    two = pipe(text=[asked, chat(picture(seed=1))], return_full_text=False, **greedy)
    assert two[0][0]["generated_text"] == text
    prompt = pair.ours.apply_chat_template(asked, add_generation_prompt=True)
    (three,) = pipe(text=prompt, images=picture(), return_full_text=False, **greedy)
    assert three["generated_text"] == text
    with pytest.raises(InputError, match="generate_kwargs"):
        pipe(text=asked, do_sample=False)
    with foveate.prune(pair.model, Random(keep=0.5)) as trace:
        pipe(text=asked, max_new_tokens=1)
    assert trace.keep_ratio == pytest.approx(0.5, abs=0.02)


def test_written_and_read_again(pair: Pair, tmp_path: Path) -> None:
    pair.model.config.save_pretrained(tmp_path)
    assert all(Path(file).is_file() for file in pair.ours.save_pretrained(tmp_path))
    again = load_processor(str(tmp_path), pair.family)
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    one, two = (p.apply_chat_template(chat(picture()), **options) for p in (pair.ours, again))
    assert torch.equal(one["input_ids"], two["input_ids"])
    assert torch.equal(one["pixel_values"], two["pixel_values"])
    assert "image_processor" in repr(pair.ours)
