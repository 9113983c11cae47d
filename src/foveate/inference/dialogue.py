"""A conversation of several turns over one pruned cache: what was read once is not read again."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from foveate.core.method import Method
from foveate.engine.attach import prune
from foveate.engine.cache import FoveatedCache
from foveate.engine.naming import CACHE
from foveate.inference.answer import Answer, Asker
from foveate.inference.chats import Message, assistant, user
from foveate.trace.records import PrefillTrace


@dataclass
class Dialogue:
    """What was said so far, and the cache that holds it.

    A turn that fails or is stopped was never there.

    Attributes:
        asker: answers.
        method: prunes the pictures of the turns to come.
        messages: of the whole conversation.
        answer: the latest one; None before the first.
        reading: how pictures were read last; None before the first.
    """

    asker: Asker
    method: Method | None = None
    messages: list[Message] = field(default_factory=list)
    answer: Answer | None = None
    reading: PrefillTrace | None = None
    _ids: list[int] = field(default_factory=list, repr=False)
    _cache: FoveatedCache | None = field(default=None, repr=False)

    def say(self, text: str, images: Sequence[Any] = ()) -> Generator[str, None, None]:
        """The answer to one more turn, piece by piece; `answer` when they have all come. Closing it stops the model.

        Args:
            images: new ones, before the text (anything that `open_picture` takes; a `Clip` is a video).

        Raises:
            InputError, ImageError: what cannot be asked.
        """
        said = [*self.messages, user(text, images)]
        return self._pieces(said, self.asker.inputs([said]))

    def use(self, method: Method | None) -> None:
        """Another method from now on; with the next turn all pictures are read again, pruned by it.

        Raises:
            ConfigurationError: it does not fit the model; all stays as it was.
        """
        with prune(self.asker.model, method):
            pass
        self.method, self._cache, self._ids = method, None, []

    def forget(self) -> None:
        """Begin anew."""
        self.messages, self.answer, self.reading = [], None, None
        self.use(self.method)

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that are held."""
        layers = [] if self._cache is None else self._cache.layers
        tensors = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
        return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))

    def _pieces(self, said: list[Message], inputs: dict[str, Tensor]) -> Generator[str, None, None]:
        prompt = inputs["input_ids"][0].tolist()
        cache = self._cache = self._shared(prompt)
        self._ids = prompt
        stream = self.asker.stream(inputs, self.method, **{CACHE: cache})
        try:
            yield from stream
        finally:
            stream.close()
        answer = self.answer = stream.answer
        self.messages, self._ids = [*said, assistant(answer.text)], [*prompt, *answer.tokens]
        if answer.prefill.groups:
            self.reading = answer.prefill

    def _shared(self, prompt: Sequence[int]) -> FoveatedCache:
        """The cache of what the prompt has in common with what was read: an answer may be written with other tokens
        than those that were generated."""
        if self._cache is None:
            return FoveatedCache(config=self.asker.model.config)
        length = self._cache.get_seq_length()
        limit = min(length, len(self._ids), len(prompt) - 1)
        pairs = zip(self._ids[:limit], prompt, strict=False)
        common = next((n for n, (own, other) in enumerate(pairs) if own != other), limit)
        self._cache.crop(common - length)
        return self._cache
