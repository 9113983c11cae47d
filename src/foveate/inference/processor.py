"""The processor of a checkpoint, and the one that stands in where torchvision is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoProcessor, AutoTokenizer, BatchFeature, ProcessorMixin

from foveate.data.videos import Clip, is_frame, open_video
from foveate.errors import FoveateError, InputError
from foveate.families.base import Family
from foveate.inference import options
from foveate.inference.chats import is_batch, open_chat, open_picture
from foveate.inference.stock_processors import pil_image_processor, without_videos
from foveate.inference.video_processor import VideoProcessor
from foveate.inference.video_prompts import replacement, timing

REFUSALS = (ValueError, TypeError, LookupError, ArithmeticError)
"""What processors raise for an input that they do not take. Not: what a device or the memory raises."""


def load_processor(source: str, family: Family) -> Any:
    """`AutoProcessor` where it works; else image-only processing from the same files.

    Processors of models that also take videos cannot be built without torchvision. Ours stands in where we can prepare
    the videos; elsewhere it is the stock one without that part.

    Raises:
        Exception: whatever transformers raises where the parts are not there either.
    """
    try:
        processor = AutoProcessor.from_pretrained(source)
        if _fits(processor, family):
            processor.tokenizer.padding_side = "left"
            return processor
    except (ImportError, ValueError, OSError, TypeError):
        pass  # torchvision is missing, or no processor configuration: the parts may still be there
    tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
    images = pil_image_processor(source)
    videos = VideoProcessor.load(source) if "video" in family.token_ids else None
    template = tokenizer.chat_template or _legacy_template(Path(source)) or family.default_template
    stock = without_videos(source, family.name, images, tokenizer, template) if videos is None else None
    if stock is not None and _fits(stock, family):
        return stock
    return ImageTextProcessor(images, tokenizer, family, template, videos)


def _fits(processor: Any, family: Family) -> bool:
    """Whether it was made for this model: without a configuration of its own, transformers guesses one."""
    if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        return False
    token = getattr(processor, "image_token_id", None)
    return token in (None, family.token_ids["image"]) and getattr(processor, "patch_size", 1) is not None


def _legacy_template(folder: Path) -> str | None:
    file = folder / "chat_template.json"
    return json.loads(file.read_text(encoding="utf-8"))["chat_template"] if file.is_file() else None


class ImageTextProcessor(ProcessorMixin):
    """Stand-in for a model's processor, from a PIL image processor, a tokenizer and a chat template.

    It is a transformers processor: options, their order of precedence, templates and the result (`BatchFeature`) are
    the library's. It adds what the library lets pass: an option that would have no effect is refused by name.

    Args:
        image_processor: transformers image processor.
        tokenizer: its tokenizer, padding on the left.
        family: says how many placeholder tokens an image needs.
        chat_template: Jinja template, or None.
        videos: prepares videos; None for models that take none, or whose videos need torchvision.

    Attributes:
        remote: whether http(s) addresses of pictures are fetched.
    """

    def __init__(
        self, image_processor: Any, tokenizer: Any, family: Family, chat_template: str | None = None,
        videos: VideoProcessor | None = None,
    ) -> None:  # fmt: skip
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.family, self.remote = family, False
        if videos is not None:
            self.video_processor = videos
            self.video_token_id = family.token_ids["video"]
            self.video_token = tokenizer.convert_ids_to_tokens(self.video_token_id)
        self.image_token_id = family.token_ids["image"]
        self.image_token = tokenizer.convert_ids_to_tokens(self.image_token_id)

    def __call__(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> BatchFeature:
        """Model inputs for prompts whose image markers are still single tokens.

        Args:
            images: one, a list, or a list per prompt, of anything that `open_picture` takes. With options that are
                about the values of arrays (`ABOUT_ARRAYS`), arrays and tensors go to the image processor as they are.
            text: a prompt or a list of them.
            videos: as images, of what `open_video` takes.
            kwargs: options as a stock processor takes them, directly or in `text_kwargs` and `images_kwargs`.

        Raises:
            InputError: videos or sound, an unknown option or one without effect, markers and images that do not
                match, a picture that the model cannot take, or truncation that cuts an image's tokens.
            ImageError: a picture that cannot be opened.
        """
        if audio is not None or (videos is not None and not self.takes_videos):
            what = "Sound" if audio is not None else "This model's videos"
            raise InputError(f"{what} need torchvision: install it, and foveate loads the model's full processor.")
        options.check(self.image_processor, kwargs)
        kwargs = options.pixels_as_size(self.image_processor, kwargs)
        kwargs.setdefault("return_mm_token_type_ids", self.family.wants_token_types)
        try:
            opened = self._opened(images, options.about_arrays(kwargs))
            clips = None if videos is None else self._clips(videos)
            found = super().__call__(images=opened if _count(opened) else None, text=text, videos=clips, **kwargs)
        except FoveateError:
            raise
        except (*REFUSALS, StrictDataclassError) as error:
            raise InputError(f"The inputs cannot be prepared: {_first_line(error)}") from error
        found.pop("token_type_ids", None)
        return found

    def _opened(self, images: Any, raw: bool) -> Any:
        if images is None or (raw and hasattr(images, "shape")):
            return images
        if isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4:
            return [self._opened(image, raw) for image in images]
        return open_picture(images, self.remote)

    @property
    def takes_videos(self) -> bool:
        """Whether videos can be prepared."""
        return getattr(self, "video_processor", None) is not None

    def _clips(self, videos: Any) -> list[Clip]:
        """All videos, in order, opened."""
        if isinstance(videos, list | tuple) and videos and not is_frame(videos[0]):
            return [clip for video in videos if video is not None for clip in self._clips(video)]
        if isinstance(videos, dict):  # chat templates of transformers 5.24 make a dictionary of any dataclass
            return [Clip(**videos)]
        return (
            []
            if isinstance(videos, list | tuple) and not videos
            else [open_video(videos, self.video_processor.sampler())]
        )

    def _process_videos(self, videos: list[Clip], **kwargs: Any) -> tuple[dict[str, Any], list[str]]:
        values = dict(self.video_processor(videos))
        texts = [replacement(self, clip, values, number) for number, clip in enumerate(videos)]
        return values | timing(self.family, videos, self.video_processor), texts

    def validate_inputs(self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any) -> None:
        """As the library's; markers and images are counted in words that name the remedy."""
        texts = [text] if isinstance(text, str) else text or []
        if not isinstance(texts, list | tuple) or not all(isinstance(one, str) for one in texts):
            raise InputError("text is a prompt or a list of prompts; for messages call apply_chat_template.")
        markers = sum(one.count(self.image_token) for one in texts)
        count = _count(images)
        if markers != count:
            raise InputError(
                f"The prompt has {markers} image marker(s) {self.image_token}, but {count} image(s) were given."
            )
        places = sum(one.count(self.video_token) for one in texts) if self.takes_videos else 0
        if places != len(videos or ()):
            raise InputError(
                f"The prompt has {places} video marker(s), but {len(videos or ())} video(s) were given; does the chat "
                "template place videos?"
            )
        frames = [clip.frames for clip in videos] if videos else None
        super().validate_inputs(images=images, text=text, videos=frames, **kwargs)

    def replace_image_token(self, image_inputs: Mapping[str, Any], image_idx: int, **kwargs: Any) -> str:
        """The marker as often as the `image_idx`-th image has tokens."""
        tensors = BatchFeature(dict(image_inputs), tensor_type="pt")
        shapes = self.family.incoming(dict(tensors)).get("image")
        if shapes is None:
            raise InputError(
                f"How many tokens an image has in {self.family.name} models is not known; install torchvision, and "
                "foveate loads the model's own processor."
            )
        return self.image_token * shapes[image_idx].size

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> Any:
        """As a stock processor's, for images from anywhere (see `chats.open_chat`).

        Raises:
            InputError: as `__call__`; also tools or documents that the template does not read.
        """
        options.check_template(self._template(chat_template), kwargs)
        chats = conversation if is_batch(conversation) else [conversation]
        if kwargs.get("tokenize"):
            chats = [open_chat(chat, self.remote, sampler=self.sampler) for chat in chats]
        prepared = chats if is_batch(conversation) else chats[0]
        try:
            return super().apply_chat_template(prepared, chat_template=chat_template, **kwargs)
        except FoveateError:
            raise
        except REFUSALS as error:
            raise InputError(f"The conversation cannot be prepared: {_first_line(error)}") from error

    @property
    def sampler(self) -> Any:
        """Which frames of a video to take, from a `FrameSampling`; None without videos."""
        return self.video_processor.sampler if self.takes_videos else None

    def _template(self, given: str | None) -> str:
        """The template itself, where `given` may be the name of one of several."""
        own: Any = self.chat_template
        found = own.get(given or "default", given) if isinstance(own, dict) else given or own
        if found is None:
            raise InputError("This checkpoint has no chat template: give one as chat_template, or write the prompt.")
        return str(found)

    def to_dict(self) -> dict[str, Any]:
        """What describes it; the family, which holds the model, does not."""
        return {"processor_class": type(self).__name__, "image_processor": self.image_processor.to_dict()}

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Write tokenizer, image processor and chat template, from which any processor of the family is built again.

        Returns:
            Names of the files.
        """
        folder = Path(save_directory)
        written = [*self.tokenizer.save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)]
        written += self.image_processor.save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        if self.takes_videos:
            place = folder / "video_preprocessor_config.json"
            place.write_text(json.dumps(self.video_processor.to_dict(), indent=1) + "\n", encoding="utf-8")
            written.append(str(place))
        if self.chat_template is not None:
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
            written.append(str(folder / "chat_template.jinja"))
        return written


def _count(images: Any) -> int:
    if images is None:
        return 0
    if isinstance(images, list | tuple):
        return sum(_count(image) for image in images)
    return images.shape[0] if getattr(images, "ndim", 0) == 4 else 1


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__
