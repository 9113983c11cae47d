"""Which options the processor that stands in can honour: the others are refused by name, never forgotten."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import GenerationConfig
from transformers.processing_utils import ImagesKwargs, ProcessingKwargs, TextKwargs
from transformers.utils.chat_template_utils import _get_template_variables

from foveate.errors import InputError

GROUPS = ("text_kwargs", "images_kwargs", "common_kwargs", "videos_kwargs", "audio_kwargs")
TEXT = frozenset(TextKwargs.__annotations__)
FLAT = frozenset(name for name in ProcessingKwargs.__annotations__ if name not in GROUPS)
"""Options of the processor itself, in versions of transformers that have such."""
IMAGES = frozenset(ImagesKwargs.__annotations__)
STANDARDISED = frozenset({"min_pixels", "max_pixels", "default_to_square", "disable_grouping", "return_tensors"})
"""Read before the images are processed, or only about speed."""
PAIRED = ("text_pair", "text_target", "text_pair_target")
COUNTS = ("max_length", "stride", "pad_to_multiple_of")
ABOUT_ARRAYS = frozenset({"do_rescale", "rescale_factor", "input_data_format"})
"""Options that say what the values of an array mean; without them an array is opened as any other picture."""
TEMPLATE = frozenset(
    {"tools", "documents", "add_generation_prompt", "continue_final_message", "return_assistant_tokens_mask",
     "tokenize", "return_tensors", "return_dict", "processor_kwargs", "sanitize_control_tokens"}
)  # fmt: skip
"""Arguments of `apply_chat_template` itself."""


def check(image_processor: Any, given: Mapping[str, Any]) -> None:
    """Refuse what would have no effect.

    Args:
        image_processor: says which options of images it reads.
        given: as given to a processor, groups included.

    Raises:
        InputError: naming the option, and the nearest known one.
    """
    honoured = _honoured(image_processor)
    for name, value in given.items():
        if name in ("videos_kwargs", "audio_kwargs"):
            if value:
                raise InputError(f"{name}: without torchvision only images and text can be prepared.")
        elif name in GROUPS:
            if not isinstance(value, Mapping):
                raise InputError(f"{name} is a dictionary of options, not {value!r}.")
            known = {"text_kwargs": TEXT, "images_kwargs": IMAGES | honoured}.get(name, TEXT | IMAGES | honoured)
            for inner, content in value.items():
                _check_one(image_processor, inner, content, known, honoured, f"{name}: ")
        else:
            _check_one(image_processor, name, value, TEXT | FLAT | IMAGES | honoured, honoured, "")


def about_arrays(given: Mapping[str, Any]) -> bool:
    """Whether some option says what the values of arrays mean."""
    groups = (given, *(given[name] for name in ("images_kwargs", "common_kwargs") if given.get(name)))
    return any(group.get(name) is not None for group in groups for name in ABOUT_ARRAYS)


def pixels_as_size(image_processor: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The options with `min_pixels` and `max_pixels` written as the `size` that they mean.

    Versions of transformers differ: one of the two alone is ignored by some, and both are deprecated by others.
    """
    found = dict(given)
    if isinstance(found.get("images_kwargs"), Mapping):
        found["images_kwargs"] = pixels_as_size(image_processor, dict(found["images_kwargs"]))
    limits = {"shortest_edge": found.pop("min_pixels", None), "longest_edge": found.pop("max_pixels", None)}
    limits = {name: value for name, value in limits.items() if value is not None}
    if limits:
        found["size"] = dict(image_processor.size) | dict(found.get("size") or {}) | limits
    return found


def check_template(template: str, given: Mapping[str, Any]) -> None:
    """Refuse what `apply_chat_template` would hand to a template that does not read it.

    Raises:
        InputError: naming the argument.
    """
    if given.get("load_audio_from_video"):
        raise InputError("load_audio_from_video: without torchvision only images and text can be prepared.")
    read = _get_template_variables(template)
    for name in ("tools", "documents"):
        if given.get(name) and name not in read:
            raise InputError(f"{name}: this model's chat template does not read it; leave it out, or give a template.")
    group = given.get("processor_kwargs")
    if group is not None and not isinstance(group, Mapping):
        raise InputError(f"processor_kwargs is a dictionary of options, not {group!r}.")
    known = read | TEMPLATE | TEXT | FLAT | IMAGES | set(GROUPS) | STANDARDISED | {"load_audio_from_video", "images"}
    for name in given:
        if name not in known and not _is_image_option(name):
            raise _unknown(name, known, "")


def _is_image_option(name: str) -> bool:
    return name in ("patch_size", "temporal_patch_size", "merge_size")


def _check_one(
    image_processor: Any, name: str, value: Any, known: Iterable[str], honoured: frozenset[str], where: str
) -> None:
    if name not in known:
        raise _unknown(name, known, where)
    if value is None:
        return
    if name in COUNTS and (not isinstance(value, int) or isinstance(value, bool)):
        raise InputError(f"{where}{name}={value!r}: write a whole number.")
    if name in PAIRED:
        raise InputError(f"{where}{name}: prompts with images have no second text; write one prompt.")
    if name in ("is_split_into_words", "return_overflowing_tokens") and value:
        raise InputError(f"{where}{name}: a prompt with images is one text in one row; leave it out.")
    if name == "device" and str(value) != "cpu":
        raise InputError(f"{where}device: images are prepared on the CPU; call .to({str(value)!r}) on the result.")
    if name == "return_tensors" and str(getattr(value, "value", value)) not in ("pt", "np"):
        raise InputError(f"{where}return_tensors={value!r}: write 'pt' or 'np', or leave it out for lists.")
    if _is_image_option(name) and value != getattr(image_processor, name, value):
        raise InputError(f"{where}{name}={value!r}: this model was built for {getattr(image_processor, name)}.")
    if name in IMAGES and name not in (honoured | TEXT | {"device"}) and value is not False:
        raise InputError(
            f"{where}{name}: {type(image_processor).__name__} does not read it; it reads {', '.join(sorted(honoured))}."
        )


def _honoured(image_processor: Any) -> frozenset[str]:
    """Names of the options that an image processor reads."""
    names: set[str] = set()
    for step in ("_preprocess", "process_image"):
        function = getattr(type(image_processor), step, None)
        parameters = inspect.signature(function).parameters if function is not None else {}
        names |= {name for name, one in parameters.items() if one.kind is not one.VAR_KEYWORD}
    valid = set(getattr(getattr(image_processor, "valid_kwargs", None), "__annotations__", {}))
    if "size" in names:
        names |= STANDARDISED & valid
    return frozenset((names & valid) | {"return_tensors"})


def _unknown(name: str, known: Iterable[str], where: str) -> InputError:
    if hasattr(GenerationConfig(), name):
        return InputError(f"{where}{name}: this is an option of generate; a pipeline takes it in generate_kwargs.")
    near = difflib.get_close_matches(name, sorted(known), 1)
    hint = f"; did you mean {near[0]}?" if near else "."
    return InputError(f"{where}{name}: there is no such option{hint}")
