"""Parts of stock processors that work without torchvision."""

from __future__ import annotations

import inspect
from typing import Any

import transformers
from transformers import AutoImageProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from foveate.errors import MissingExtraError


def pil_image_processor(source: str) -> Any:
    """The image processor of a checkpoint that needs no torchvision.

    Raises:
        MissingExtraError: transformers has none but one that needs it.
    """
    try:
        return AutoImageProcessor.from_pretrained(source, backend="pil")
    except (ImportError, TypeError, ValueError):  # no such class; before 5.2x the automatic one wanted torchvision
        described, _ = transformers.ImageProcessingMixin.get_image_processor_dict(source)
    name = described["image_processor_type"].removesuffix("Fast").removesuffix("Pil")
    kind = getattr(transformers, f"{name}Pil", None)
    if kind is None:
        raise MissingExtraError(f"{name} of transformers needs torchvision: pip install torchvision.")
    return kind.from_pretrained(source)


def without_videos(source: str, model_type: str, images: Any, tokenizer: Any, template: str | None) -> Any:
    """The stock processor of a model type with nothing in place of what prepares videos and sound; None if it cannot be
    built from these parts.

    Args:
        source: checkpoint, for the processor's own settings.
        images: its image processor, which may be one that needs no torchvision.

    Raises:
        MissingExtraError: it wants another package.
    """
    kind: Any = getattr(transformers, PROCESSOR_MAPPING_NAMES.get(model_type) or "", None)
    if kind is None:
        return None

    class WithoutVideos(kind):
        """Takes None for a part."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)

    WithoutVideos.__name__ = kind.__name__  # by which it is saved
    parts = dict.fromkeys(kind.get_attributes()) | {"image_processor": images, "tokenizer": tokenizer}
    own = set(inspect.signature(kind.__init__).parameters) - {*parts, "chat_template", "kwargs"}
    try:
        described, _ = kind.get_processor_dict(source)
        settings = {name: value for name, value in described.items() if name in own and value is not None}
        return WithoutVideos(**parts, **settings, chat_template=template)
    except ImportError as error:  # of a package that even its image part wants
        raise MissingExtraError(" ".join(str(error).split())) from error
    except (AttributeError, TypeError, ValueError, OSError):
        return None
