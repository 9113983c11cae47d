"""Load a model with its processor, with or without torchvision."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from foveate import zoo
from foveate.data.images import open_image
from foveate.errors import CheckpointError, InputError, UnsupportedModelError
from foveate.families import adapt, registry
from foveate.families.base import Family


def load(
    path_or_id: str | Path,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    attn_implementation: str | None = None,
) -> tuple[Any, Any]:
    """Model (in evaluation mode) and processor of a checkpoint.

    Args:
        path_or_id: folder, Hub id, or a model of the zoo (`foveate/scenes-qwen2_5_vl`).
        dtype: default is the checkpoint's on a GPU, float32 on a CPU.
        device: default is `cuda` if there is one. `"auto"` spreads the model over all devices (needs accelerate).
        attn_implementation: `"sdpa"` (default), `"eager"`, `"flash_attention_2"`, ...

    Raises:
        CheckpointError: nothing there, or unreadable.
        UnsupportedModelError: a model of another family.
    """
    source = zoo.resolve(str(path_or_id))
    device = str(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype is None:
        dtype = torch.float32 if device == "cpu" else "auto"
    more = {"device_map": "auto"} if device == "auto" else {}
    try:
        config = AutoConfig.from_pretrained(source)
        _check_family(source, config.model_type)
        model = AutoModelForImageTextToText.from_pretrained(
            source, dtype=dtype, attn_implementation=attn_implementation, **more
        )
    except UnsupportedModelError:
        raise
    except Exception as error:  # transformers, safetensors and the Hub each raise their own
        raise _unreadable(source, error) from error
    model = model.eval() if more else model.eval().to(device)
    return model, load_processor(source, adapt(model))


def _check_family(source: str, model_type: str) -> None:
    if model_type not in registry():
        raise UnsupportedModelError(
            f"{source} is a '{model_type}' model; supported families are {', '.join(sorted(registry()))}. "
            "A family is one adapter file in foveate/families/."
        )


def _unreadable(source: str, error: Exception) -> CheckpointError:
    where = "folder" if Path(source).exists() else "id (it is no folder here)"
    detail = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return CheckpointError(
        f"Cannot load a model from {where} {source}: {detail} "
        "It must hold config.json and safetensors weights; download it again if it is incomplete."
    )


def load_processor(source: str, family: Family) -> Any:
    """`AutoProcessor` where it works; else image-only processing from the same files.

    Processors of models that also take videos cannot be built without torchvision.
    """
    try:
        processor = AutoProcessor.from_pretrained(source)
        if getattr(processor, "image_processor", None) is not None:
            processor.tokenizer.padding_side = "left"
            return processor
    except (ImportError, ValueError, OSError, TypeError):
        pass  # torchvision is missing, or no processor configuration: the parts may still be there
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
        images = _pil_image_processor(source)
    except Exception as error:
        raise _unreadable(source, error) from error
    template = tokenizer.chat_template or _legacy_template(Path(source)) or family.default_template
    return ImageTextProcessor(images, tokenizer, family, template)


def _pil_image_processor(source: str) -> Any:
    """The image processor that needs no torchvision."""
    try:
        return AutoImageProcessor.from_pretrained(source, backend="pil")
    except (ImportError, TypeError):  # before 5.2x the automatic class itself wanted torchvision
        described, _ = transformers.ImageProcessingMixin.get_image_processor_dict(source)
        name = described["image_processor_type"].removesuffix("Fast").removesuffix("Pil")
        return getattr(transformers, f"{name}Pil").from_pretrained(source)


def _legacy_template(folder: Path) -> str | None:
    file = folder / "chat_template.json"
    return json.loads(file.read_text())["chat_template"] if file.is_file() else None


class ImageTextProcessor:
    """Image-only stand-in for a transformers processor: PIL image processor, tokenizer and chat template.

    Args:
        image_processor: transformers image processor.
        tokenizer: its tokenizer, padding on the left.
        family: says how many placeholder tokens an image needs.
        chat_template: Jinja template, or None.
    """

    def __init__(self, image_processor: Any, tokenizer: Any, family: Family, chat_template: str | None) -> None:
        self.image_processor, self.tokenizer = image_processor, tokenizer
        self.family, self.chat_template = family, chat_template
        self.image_token_id = family.token_ids["image"]
        self.image_token = tokenizer.convert_ids_to_tokens(self.image_token_id)

    def __call__(
        self, images: Any = None, text: str | Sequence[str] = "", videos: Any = None, **options: Any
    ) -> dict[str, Any]:
        """Model inputs for prompts whose image markers are still single tokens.

        Raises:
            InputError: videos without torchvision, or markers and images that do not match.
        """
        if videos is not None:
            raise InputError("Videos need torchvision: install it, and foveate loads the model's full processor.")
        texts = [text] if isinstance(text, str) else list(text)
        pictures = [open_image(image) for image in _flat(images)]
        pixels = dict(self.image_processor(images=pictures, return_tensors="pt")) if pictures else {}
        texts = self._expand(texts, pixels, len(pictures))
        options.setdefault("return_tensors", "pt")
        encoded = dict(self.tokenizer(texts, padding=options.pop("padding", len(texts) > 1), **options))
        encoded.pop("token_type_ids", None)
        if self.family.wants_token_types:
            encoded["mm_token_type_ids"] = (encoded["input_ids"] == self.image_token_id).int()
        return encoded | pixels

    def _expand(self, texts: list[str], pixels: dict[str, Any], images: int) -> list[str]:
        markers = sum(text.count(self.image_token) for text in texts)
        if markers != images:
            raise InputError(
                f"The prompt has {markers} image marker(s) {self.image_token}, but {images} image(s) were given."
            )
        sizes = iter([grid.size for grid in self.family.incoming(pixels).get("image", ())])
        expanded = []
        for text in texts:
            head, *rest = text.split(self.image_token)
            expanded.append(head + "".join(self.image_token * next(sizes) + part for part in rest))
        return expanded

    def apply_chat_template(
        self,
        conversation: Any,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        processor_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Prompt text of one conversation or a list of them; with `tokenize` the model inputs.

        Images stand in the content as `{"type": "image", "image": PIL image or path}`. Options and
        `processor_kwargs` go to `__call__`, as with a stock processor.
        """
        batched = bool(conversation) and isinstance(conversation[0], list | tuple)
        chats = conversation if batched else [conversation]
        prompts = [
            self.tokenizer.apply_chat_template(
                chat, chat_template=self.chat_template, tokenize=False, add_generation_prompt=add_generation_prompt
            )
            for chat in chats
        ]
        if not tokenize:
            return prompts if batched else prompts[0]
        images = [image for chat in chats for image in _chat_images(chat)]
        inputs = self(images=images or None, text=prompts, **((processor_kwargs or {}) | options))
        return inputs if return_dict else inputs["input_ids"]

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Write tokenizer, image processor and chat template, from which `load_processor` builds this again."""
        self.tokenizer.save_pretrained(save_directory)
        self.image_processor.save_pretrained(save_directory)
        if self.chat_template is not None:
            (Path(save_directory) / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """As the tokenizer's."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """As the tokenizer's."""
        return self.tokenizer.decode(*args, **kwargs)


def _flat(images: Any) -> list[Any]:
    if images is None:
        return []
    if not isinstance(images, list | tuple):
        return [images]
    return [image for item in images for image in _flat(item)]


def _chat_images(chat: Any) -> list[Any]:
    found = []
    for message in chat:
        for part in message["content"] if not isinstance(message["content"], str) else ():
            if part.get("type") == "video":
                raise InputError("Videos need torchvision: install it, and foveate loads the full processor.")
            if part.get("type") == "image":
                image = part.get("image", part.get("path"))
                if image is None:
                    raise InputError("An image part of the conversation has neither 'image' nor 'path'.")
                found.append(image)
    return found
