"""Models and processors from disk, with and without torchvision; images from disk."""

from __future__ import annotations

import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPImageProcessorPil, PreTrainedTokenizerFast

import foveate
from foveate import zoo
from foveate.data.images import open_image
from foveate.errors import CheckpointError, ImageError, InputError, UnsupportedModelError, VideoError
from foveate.inference.processor import ImageTextProcessor
from foveate.methods import make
from tests.tiny import make_tiny


@pytest.fixture(scope="module")
def shipped() -> tuple[Any, Any]:
    return foveate.load(zoo.DEFAULT)


@pytest.fixture(scope="module")
def llava_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA checkpoint of the usual kind: a full processor of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlavaProcessor

    folder = tmp_path_factory.mktemp("llava")
    make_tiny("llava").model.save_pretrained(folder)
    words = {w: i for i, w in enumerate(["<pad>", "<s>", "</s>", "<unk>", "USER", ":", "what", "ASSISTANT"])}
    words |= {f"w{i}": i for i in range(len(words), 90)} | {"<image>": 90}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<image>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    images = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    LlavaProcessor(
        images, fast, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    ).save_pretrained(folder)
    return folder


def test_the_zoo_model_answers_in_batches(shipped: tuple[Any, Any]) -> None:
    model, processor = shipped
    assert not model.training
    image = Image.new("RGB", (224, 224), "white")
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": image}] * n + [{"type": "text", "text": "What?"}]}]
        for n in (1, 2, 0)
    ]
    inputs = processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
    )
    assert inputs["input_ids"].shape[0] == 3
    assert (inputs["attention_mask"][:, -1] == 1).all()  # padded on the left
    counts = (inputs["input_ids"] == model.config.image_token_id).sum(1).tolist()
    assert counts == [64, 128, 0]
    with foveate.prune(model, make("vitcop", keep=0.2)) as trace:
        model.generate(**inputs, max_new_tokens=2)
    assert trace.last.visual_tokens == 192


def test_image_only_processing_stands_in_for_a_missing_video_processor(shipped: tuple[Any, Any]) -> None:
    try:
        AutoProcessor.from_pretrained(zoo.resolve(zoo.DEFAULT))
    except Exception:  # torchvision is absent here: the case that the stand-in is for
        assert isinstance(shipped[1], ImageTextProcessor)
        with pytest.raises(InputError, match="torchvision"):
            shipped[1](text="x", audio=[1])
        video = [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}]
        with pytest.raises(VideoError, match="no video file"):
            shipped[1].apply_chat_template(video, tokenize=True)
    else:
        assert not isinstance(shipped[1], ImageTextProcessor)


def test_markers_and_images_must_match(shipped: tuple[Any, Any]) -> None:
    processor = shipped[1]
    if isinstance(processor, ImageTextProcessor):
        with pytest.raises(InputError, match="1 image marker"):
            processor(text=f"a {processor.image_token} b")


def test_a_full_processor_is_used_where_it_works(llava_folder: Path) -> None:
    model, processor = foveate.load(llava_folder, dtype=torch.bfloat16, attn_implementation="eager")
    assert model.dtype == torch.bfloat16
    assert model.config.text_config._attn_implementation == "eager"
    assert not isinstance(processor, ImageTextProcessor)
    inputs = processor(text="USER: <image> what ASSISTANT:", images=Image.new("RGB", (80, 60)), return_tensors="pt")
    assert (inputs["input_ids"] == 90).sum() == 16


def test_a_pipeline(llava_folder: Path) -> None:
    from transformers import pipeline

    model, processor = foveate.load(llava_folder)
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    with foveate.prune(model, make("random", keep=0.5)) as trace:
        out = pipe(text="USER: <image> what ASSISTANT:", images=Image.new("RGB", (80, 60)), max_new_tokens=2)
    assert out
    assert trace.last.alive_per_layer()[0] == 8


@pytest.mark.parametrize("break_it", ["truncate", "garbage", "no weights", "no config", "bad config", "missing"])
def test_unreadable_checkpoints(break_it: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(zoo.resolve(zoo.DEFAULT), folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    if break_it == "truncate":
        weights.write_bytes(weights.read_bytes()[:100_000])
    elif break_it == "garbage":
        weights.write_bytes(b"garbage" * 1000)
    elif break_it == "no weights":
        weights.unlink()
    elif break_it == "no config":
        config.unlink()
    elif break_it == "bad config":
        config.write_text("{not json")
    else:
        folder = tmp_path / "nowhere"
    with pytest.raises(CheckpointError, match="Cannot load"):
        foveate.load(folder)


def test_another_family_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UnsupportedModelError, match=r"'bert' model.*reads images"):
        foveate.load(tmp_path)


# -- images


def test_the_processor_sees_the_same_pixels_through_every_door(shipped: tuple[Any, Any], tmp_path: Path) -> None:
    import numpy as np

    processor, path = shipped[1], tmp_path / "a.png"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (56, 112, 4), dtype=np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    text = "<|vision_start|><|image_pad|><|vision_end|>"
    expected = processor(images=open_image(path), text=text, return_tensors="pt")["pixel_values"]
    turned = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    for source in (path, str(path), path.read_bytes(), Image.open(path), turned):
        chat = [{"role": "user", "content": [{"type": "image", "image": source}, {"type": "text", "text": "What?"}]}]
        assert torch.equal(processor(images=source, text=text, return_tensors="pt")["pixel_values"], expected)
        inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
        assert torch.equal(inputs["pixel_values"], expected)


def png(path: Path, width: int, height: int) -> Path:
    """A PNG that claims a size; its few bytes decode to black."""
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * (height * (1 + (width + 7) // 8)), 9)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


def test_good_images(tmp_path: Path) -> None:
    for mode in ("RGB", "RGBA", "L", "P", "1"):
        Image.new(mode, (8, 6)).save(tmp_path / "a.png")
        assert open_image(tmp_path / "a.png").mode == "RGB"


def test_exif_orientation(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 6))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg").size == (6, 8)


def bad_images(folder: Path) -> dict[str, Path]:
    good = folder / "good.jpg"
    Image.effect_noise((200, 200), 50).save(good)
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("not a picture")
    (folder / "cut.jpg").write_bytes(good.read_bytes()[:2000])
    Image.new("RGB", (1, 1)).save(folder / "pixel.png")
    return {
        r"no image file": folder / "missing.png",
        r"empty": folder / "empty.png",
        r"cannot be read": folder / "text.png",
        r"cannot be read .*truncated": folder / "cut.jpg",
        r"at least 2": folder / "pixel.png",
        r"100 megapixels, the limit": png(folder / "bomb.png", 10_000, 10_000),
        r"megapixels|too many pixels": png(folder / "huge.png", 40_000, 10_000),
        r"no image file .*": folder,
    }


def test_bad_images(tmp_path: Path) -> None:
    for message, path in bad_images(tmp_path).items():
        with pytest.raises(ImageError, match=message):
            open_image(path)
