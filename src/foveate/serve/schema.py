"""What a request may hold: everything else is refused by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag, model_validator

from foveate.inference.schemas import ANY_OBJECT

MOST_TEXT = 1_000_000
"""Characters of a whole request: longer ones would hold up the tokenizer, which takes one request at a time."""
Text = Annotated[str, StringConstraints(max_length=MOST_TEXT)]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=256)]


TEXT, LIST = "<text>", "<list>"
"""What a value was taken for, where it may be a text or a list; pydantic puts it into the path of an error."""


def _text_or_list(value: Any) -> str:
    return LIST if isinstance(value, list) else TEXT


class Strict(BaseModel):
    """Unknown keys, numbers in quotes, infinity and NaN are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class TextPart(Strict):
    """Text within a message."""

    type: Literal["text"]
    text: Text


class ImageUrl(Strict):
    """Where an image is. `detail` is accepted for clients that send it; how large an image is read is the model's."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(Strict):
    """An image within a message: a data URI, or what the operator allowed."""

    type: Literal["image_url"]
    image_url: ImageUrl


class VideoUrl(Strict):
    """Where a video is."""

    url: str


class VideoPart(Strict):
    """A video within a message, from where an image may come; `frames` or `fps` say how many frames are looked at."""

    type: Literal["video_url"]
    video_url: VideoUrl
    frames: Annotated[int, Field(ge=1, le=768)] | None = None
    fps: Annotated[float, Field(gt=0, le=1000)] | None = None

    @model_validator(mode="after")
    def _one_wish(self) -> VideoPart:
        if self.frames is not None and self.fps is not None:
            raise ValueError("give frames or fps, not both")
        return self


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class ChatMessage(Strict):
    """One turn. Images and videos stand in user turns only."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[Text, Tag(TEXT)] | Annotated[list[Part], Field(min_length=1, max_length=256), Tag(LIST)],
        Discriminator(_text_or_list),
    ]

    @model_validator(mode="after")
    def _images_are_the_users(self) -> ChatMessage:
        if self.role != "user" and any(isinstance(part, ImagePart | VideoPart) for part in self.parts()):
            raise ValueError(f"a {self.role} message holds text only; put images and videos into user messages")
        return self

    def parts(self) -> list[TextPart | ImagePart | VideoPart]:
        """The content as parts."""
        return [TextPart(type="text", text=self.content)] if isinstance(self.content, str) else list(self.content)


class StreamOptions(Strict):
    """What a stream holds besides text."""

    include_usage: bool = False


class TextAnswer(Strict):
    """An answer of any form."""

    type: Literal["text"]

    def schema_of(self) -> None:
        """None: anything goes."""


class JsonObjectAnswer(Strict):
    """An answer that is some JSON object."""

    type: Literal["json_object"]

    def schema_of(self) -> Mapping[str, Any]:
        """That of every object."""
        return ANY_OBJECT


class NamedSchema(Strict):
    """A schema under a name. It is always followed, whatever `strict` says."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: Text | None = None
    strict: bool | None = None


class JsonSchemaAnswer(Strict):
    """An answer that follows a JSON schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema

    def schema_of(self) -> Mapping[str, Any]:
        """As given."""
        return self.json_schema.schema_


AnswerFormat = Annotated[TextAnswer | JsonObjectAnswer | JsonSchemaAnswer, Field(discriminator="type")]


class FoveateOptions(Strict):
    """How this request is pruned, within the operator's range.

    Attributes:
        keep: average share of visual tokens kept, in (0, 1]; 1 is everything.
        method: a name of `foveate methods` that the operator allows, or `none`.
    """

    keep: Annotated[float, Field(gt=0, le=1)] | None = None
    method: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None


class ChatRequest(Strict):
    """A request to `/v1/chat/completions`: OpenAI's fields as far as they have an effect here, and `foveate`."""

    model: Annotated[str, StringConstraints(max_length=512)]
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=512)]
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: (
        Annotated[
            Annotated[StopText, Tag(TEXT)] | Annotated[list[StopText], Field(max_length=4), Tag(LIST)],
            Discriminator(_text_or_list),
        ]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: Annotated[str, StringConstraints(max_length=512)] | None = None
    response_format: AnswerFormat = TextAnswer(type="text")
    foveate: FoveateOptions = FoveateOptions()

    @model_validator(mode="after")
    def _fits_together(self) -> ChatRequest:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens mean the same; give one of them")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options need stream=true")
        if self.messages[-1].role != "user":
            raise ValueError("the last message is the user's, to which the model answers")
        if sum(map(len, self.texts())) > MOST_TEXT:
            raise ValueError(f"all texts together may have at most {MOST_TEXT:,} characters")
        return self

    @property
    def limit(self) -> int | None:
        """Most new tokens that the client wants."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def media(self) -> Iterator[ImagePart | VideoPart]:
        """Every image and video, in reading order."""
        for message in self.messages:
            yield from (part for part in message.parts() if not isinstance(part, TextPart))

    def texts(self) -> Iterator[str]:
        """Every text, in reading order."""
        for message in self.messages:
            yield from (part.text for part in message.parts() if isinstance(part, TextPart))


def openapi() -> dict[str, Any]:
    """The body of the endpoint for its OpenAPI page, where the request is read by hand."""
    content = {"application/json": {"schema": ChatRequest.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}
