"""lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval) with pruned models.

    lmms-eval --model foveate --model_args pretrained=M,method=vitcop,keep=0.111 --tasks T

The entry point is in `manifest.py`. lmms-eval is an extra (`foveate[lmms]`) and imported
only here. The built-in scenes are the task `foveate_scenes` under `--include_path $(python -m
foveate.plugins.lmms.scenes)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from torch import Tensor
from transformers import DynamicCache

from foveate.engine.attach import prune
from foveate.engine.naming import CACHE
from foveate.errors import ConfigurationError
from foveate.inference.answer import Asker, cut
from foveate.inference.chats import user
from foveate.specs.choose import choose_method
from foveate.specs.grammar import parse_value

Chat = list[dict[str, Any]]
_SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "num_beams", "max_new_tokens", "repetition_penalty")


class Foveate(lmms):
    """A stock model under a pruning method, as lmms-eval sees it.

    Args:
        pretrained: folder, Hub id or zoo name.
        method: a name of `foveate methods`, a foveate.json, or `none`.
        batch_size: requests per batch (padded on the left).
        dtype, device, attn_implementation: as `foveate.load`.
        device_map: `auto` spreads the model over all devices.
        max_new_tokens: where a task says nothing.
        parameters: everything else goes to the method, e.g. `keep=0.111`.

    Raises:
        ConfigurationError: unknown method or parameter.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        method: str = "vitcop",
        batch_size: int | str = 1,
        dtype: str | None = None,
        device: str | None = None,
        device_map: str | None = None,
        attn_implementation: str | None = None,
        max_new_tokens: int = 128,
        max_batch_size: int | None = None,
        **parameters: Any,
    ) -> None:
        super().__init__()
        try:
            self.batch_size = int(batch_size)
        except ValueError as error:
            raise ConfigurationError(
                f"batch_size={batch_size}: write a whole number; 'auto' is not supported."
            ) from error
        given = {name: parse_value(value) if isinstance(value, str) else value for name, value in parameters.items()}
        self.method = choose_method(method, model=pretrained, **given)
        self.asker = Asker.load(
            pretrained,
            int(max_new_tokens),
            dtype=dtype,
            device=device_map or device,
            attn_implementation=attn_implementation,
        )
        self.model, self.processor = self.asker.model, self.asker.processor
        self.kept: list[float] = []

    # -- what lmms-eval calls ----------------------------------------------------------------------------

    def generate_until(self, requests: list[Any]) -> list[GenerationResult]:
        """Answers in the order of the requests, cut at the task's stop strings."""
        results: dict[int, GenerationResult] = {}
        for options, numbers in self._batches(requests):
            chats = [self._chat(requests[n]) for n in numbers]
            for number, result in zip(numbers, self._generate(chats, options), strict=True):
                results[number] = result
                context, _, given, *_ = requests[number].args
                self.cache_hook.add_partial("generate_until", (context, given), result.text)
        return [results[number] for number in range(len(requests))]

    def generate_until_multi_round(self, requests: list[Any]) -> list[list[str]]:
        """Per request the answers of all rounds; the task makes each round's messages from the answers before."""
        return [self._rounds(request) for request in requests]

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Sum of the continuation's log probabilities, and whether greedy decoding would give it.

        The prompt is read, and pruned, alone; then the continuation is fed to the pruned cache, so that a method
        which looks at the last token sees the prompt's, as it would when answering.
        """
        return [self._likelihood(*request.args) for request in requests]

    # -- how ---------------------------------------------------------------------------------------------

    def _batches(self, requests: Sequence[Any]) -> Iterator[tuple[dict[str, Any], list[int]]]:
        """Requests with equal generation options, in batches of at most `batch_size`."""
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(repr(sorted(request.args[2].items(), key=str)), []).append(number)
        for numbers in alike.values():
            options = dict(requests[numbers[0]].args[2])
            for start in range(0, len(numbers), self.batch_size):
                yield options, numbers[start : start + self.batch_size]

    def _chat(self, request: Any) -> Chat:
        _, to_messages, _, doc_id, task, split = request.args
        return _messages(to_messages(self.task_dict[task][split][doc_id]))

    def _generate(self, chats: list[Chat], options: dict[str, Any]) -> list[GenerationResult]:
        answers = self.asker.answer(self.asker.inputs(chats), self.method, **self._options(options))
        self.kept.append(answers[0].prefill.keep_ratio)
        until = options.get("until") or ()
        stops = [until] if isinstance(until, str) else until
        return [
            GenerationResult(
                text=cut(answer.text, stops).strip(), token_counts=TokenCounts(output_tokens=len(answer.tokens))
            )
            for answer in answers
        ]

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        options = {name: given[name] for name in _SAMPLING if given.get(name) is not None}
        if not options.get("temperature"):  # tasks say temperature 0 for greedy
            options["do_sample"] = False
            options = {k: v for k, v in options.items() if k not in ("temperature", "top_p", "top_k")}
        else:
            options.setdefault("do_sample", True)
        return options

    def _rounds(self, request: Any) -> list[str]:
        _, to_messages, options, doc_id, task, split = request.args
        doc = self.task_dict[task][split][doc_id]
        messages, answers, info = to_messages(doc), [], None
        while True:
            answers.append(self._generate([_messages(messages)], options)[0].text)
            following = to_messages(
                doc, round_idx=len(answers), previous_output=list(answers), previous_round_info=info
            )
            if not (isinstance(following, tuple) and len(following) == 4):
                return answers
            messages, finished, _, info = following
            if finished:
                return answers

    def _likelihood(
        self, context: str, target: Any, to_visual: Any = None, doc_id: Any = None, task: Any = None, split: Any = None
    ) -> tuple[float, bool]:
        images: list[Any] = []
        if task is not None:
            doc = self.task_dict[task][split][doc_id]
            images, target = list(to_visual(doc) or ()), target(doc) if callable(target) else target
        inputs = self.asker.inputs([[user(context, images)]])
        self.asker.check_text(str(target), "the continuation")
        ids = self.processor.tokenizer(str(target).lstrip(), add_special_tokens=False, return_tensors="pt")["input_ids"]
        logits = self._continue(inputs, ids.to(self.model.device))
        chosen = logits.log_softmax(-1).gather(1, ids[0, :, None].to(logits.device))
        return float(chosen.sum()), bool((logits.argmax(-1).cpu() == ids[0]).all())

    def _continue(self, inputs: dict[str, Tensor], ids: Tensor) -> Tensor:
        """`[n, V]` float32 logits that predict the tokens `ids` `[1, n]` after the prompt."""
        with prune(self.model, self.method) as trace, torch.inference_mode():
            cache = DynamicCache(config=self.model.config.get_text_config())  # will note where positions go on
            first = self.model(**inputs, **{CACHE: cache}, use_cache=True, logits_to_keep=1)
            parts = [first.logits[0]]
            if ids.shape[1] > 1:
                known, past = ids[:, :-1], inputs["input_ids"].shape[1]
                rest = self.model(
                    input_ids=known,
                    attention_mask=torch.cat([inputs["attention_mask"], torch.ones_like(known)], dim=1),
                    position_ids=torch.arange(past, past + known.shape[1], device=known.device)[None],
                    **{CACHE: cache},
                    use_cache=True,
                )
                parts.append(rest.logits[0])
        self.kept.append(trace.keep_ratio)
        return torch.cat(parts).float()


def _messages(messages: Any) -> Chat:
    """lmms-eval's messages (media under `url`) as chat templates want them."""
    chat = []
    for message in messages:
        content = []
        for part in message["content"]:
            kind = part["type"]
            value = part["text"] if kind == "text" else part["url"]
            content.append({"type": kind, kind: value})
        chat.append({"role": message["role"], "content": content})
    return chat
