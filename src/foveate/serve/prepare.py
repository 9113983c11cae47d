"""From a request's body to model inputs, away from the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import Any

from pydantic import ValidationError

from foveate.data.videos import FrameSampling
from foveate.engine.planning import plan_columns
from foveate.errors import MissingExtraError, SchemaError
from foveate.inference.answer import Asker, context_length
from foveate.inference.batches import sampler
from foveate.inference.schemas import JsonSchema, SchemaCompiler
from foveate.serve.choices import MethodChoices
from foveate.serve.clips import ClipReader
from foveate.serve.generation import Event, Generation
from foveate.serve.options import ServeOptions
from foveate.serve.pictures import PictureReader
from foveate.serve.problems import RequestError, invalid
from foveate.serve.sampling import Sampling, check_generation
from foveate.serve.schema import ChatRequest, ImagePart, TextPart, VideoPart


class Preparation:
    """Prepares requests in a bounded pool of threads.

    Args:
        asker: model and processor.
        choices: which pruning requests may choose.
        options: of the server.
    """

    def __init__(self, asker: Asker, choices: MethodChoices, options: ServeOptions) -> None:
        self._asker, self._choices, self._options = asker, choices, options
        self._pictures = PictureReader(options.media)
        self._clips = ClipReader(options.media, sampler(asker.processor))
        self._pool = ThreadPoolExecutor(options.workers, "foveate-prepare")
        self._processor = threading.Lock()  # tokenizers set padding on themselves while they work
        self._markers = markers(asker.processor.tokenizer)
        self._penalty, self._top_k = check_generation(asker.model)
        self._context = context_length(asker.model)

    async def parse(self, body: bytes) -> ChatRequest:
        """The request in a body.

        Raises:
            RequestError: not what `ChatRequest` describes, or of another model.
        """
        request = await self._run(lambda: read(body))
        if request.model != self._options.name:
            raise RequestError(
                f"There is no model of this name here; this server's is {self._options.name}.", 404, "model",
                "model_not_found",
            )  # fmt: skip
        return request

    async def prepare(self, request: ChatRequest, arrived: float, notify: Callable[[Event], None]) -> Generation:
        """What the scheduler runs.

        Raises:
            RequestError, FoveateError: it cannot be run as it is.
        """
        self._check(request)
        method = await self._run(lambda: self._choices.choose(request.foveate))
        schema = await self._run(lambda: self._schema(request))
        sources = [await self._fetch(part) for part in request.media()]
        media = [await self._run(partial(self._open, *one)) for one in zip(request.media(), sources, strict=True)]
        inputs = await self._run(lambda: self._encode(request, media))
        columns = await self._run(partial(plan_columns, self._asker.model, method, inputs))
        length = int(inputs["input_ids"].shape[1])
        sampling = Sampling(request.temperature, request.top_p, request.seed, self._penalty, self._top_k)
        return Generation(
            inputs=inputs,
            method=method,
            sampling=sampling,
            new_tokens=self._new_tokens(request, length),
            notify=notify,
            stops=request.stops,
            schema=schema,
            answers=request.n,
            arrived=arrived,
            deadline=arrived + self._options.seconds,
            columns=columns,
        )

    def close(self) -> None:
        """End the pool's threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _check(self, request: ChatRequest) -> None:
        """What can be refused before anything is fetched or decoded."""
        most = self._options.media.images
        if sum(1 for _ in request.media()) > most:
            raise RequestError(f"this server takes at most {most} images and videos in one request", param="messages")
        for number, message in enumerate(request.messages):
            text = "".join(getattr(part, "text", "") for part in message.parts())
            found = next((marker for marker in self._markers if marker in text), None)
            if found is not None:
                raise RequestError(
                    f"{found} is a control token of this model, which no text may hold; write it in another way.",
                    param=f"messages.{number}.content",
                    code="control_token",
                )
        if request.limit is not None and request.limit > self._options.most_new_tokens:
            raise RequestError(f"this server gives at most {self._options.most_new_tokens}", param="max_tokens")
        if request.n > self._options.rows:
            raise RequestError(f"this server generates at most {self._options.rows} answers at once", param="n")

    def _schema(self, request: ChatRequest) -> JsonSchema | None:
        wanted = request.response_format.schema_of()
        if wanted is None:
            return None
        try:
            return self._compiler.compile(wanted)
        except (SchemaError, MissingExtraError) as error:
            raise RequestError(str(error), param="response_format", code="schema") from error

    @cached_property
    def _compiler(self) -> SchemaCompiler:
        return SchemaCompiler.of(self._asker.model, self._asker.processor.tokenizer)

    async def _fetch(self, part: ImagePart | VideoPart) -> str | bytes:
        if isinstance(part, VideoPart):
            return await self._clips.fetch(part.video_url.url)
        return await self._pictures.fetch(part.image_url.url)

    def _open(self, part: ImagePart | VideoPart, source: str | bytes) -> dict[str, Any]:
        if isinstance(part, ImagePart):
            return {"type": "image", "image": self._pictures.open(source)}
        wish = FrameSampling(part.frames, part.fps) if part.frames or part.fps else None
        return {"type": "video", "video": self._clips.open(source, wish)}

    def _encode(self, request: ChatRequest, media: list[dict[str, Any]]) -> dict[str, Any]:
        coming = iter(media)
        chat = []
        for message in request.messages:
            parts = [
                {"type": "text", "text": part.text} if isinstance(part, TextPart) else next(coming)
                for part in message.parts()
            ]
            chat.append({"role": "system" if message.role == "developer" else message.role, "content": parts})
        with self._processor:
            return self._asker.inputs([chat], remote=False, local=False)

    def _new_tokens(self, request: ChatRequest, length: int) -> int:
        room = self._context - length
        wanted = request.limit or min(self._options.new_tokens, max(1, room))
        if room < wanted:
            raise RequestError(
                f"The prompt has {length:,} tokens and {wanted:,} are asked for; the model reads {self._context:,}.",
                param="messages",
                code="context_length_exceeded",
            )
        return wanted


def read(body: bytes) -> ChatRequest:
    """Parse and check a body.

    Raises:
        RequestError: naming the first fault.
    """
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from error
    except (RecursionError, ValueError) as error:
        raise RequestError("The body is no JSON that can be read.") from error


def markers(tokenizer: Any) -> tuple[str, ...]:
    """Texts that the tokenizer reads as control tokens: of a client, they would forge turns and images."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    found = {str(token) for token in added if getattr(token, "special", False)} | set(tokenizer.all_special_tokens)
    return tuple(sorted(filter(None, found)))
