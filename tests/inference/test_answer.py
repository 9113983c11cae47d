"""One way to ask: batches, conversations, streams, and a trace for each call."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import Any

import pytest
import torch

import foveate
from foveate import scenes, zoo
from foveate.errors import InputError
from foveate.inference.answer import Asker, cut
from foveate.inference.chats import assistant, user
from foveate.inference.streaming import Stream
from foveate.methods import Downsample, Random, ViTCoP


@pytest.fixture(scope="module")
def asker() -> Asker:
    return Asker.load(zoo.DEFAULT, 8)


@pytest.fixture(scope="module")
def samples() -> list[Any]:
    return list(scenes.load("test", 3, 9))


def test_an_answer_is_the_stock_models(asker: Asker, samples: list[Any]) -> None:
    inputs = asker.questions([(s.images, s.question) for s in samples])
    out = asker.model.generate(**inputs, max_new_tokens=8, do_sample=False)
    new = out[:, inputs["input_ids"].shape[1] :]
    texts = asker.processor.batch_decode(new, skip_special_tokens=True)
    answers = asker.answer(inputs)
    assert [answer.text for answer in answers] == [text.strip() for text in texts]
    end = asker.model.generation_config.eos_token_id
    for answer, tokens in zip(answers, new.tolist(), strict=True):
        assert answer.stop == "end"
        assert list(answer.tokens) == tokens[: tokens.index(end) + 1]


def test_a_row_counts_its_own_tokens(asker: Asker, samples: list[Any]) -> None:
    one, two, _ = samples
    rows = [(one.images, one.question), ([*one.images, *two.images], two.question), ([], "What is two and two?")]
    answers = asker.answer(asker.questions(rows), Downsample(keep=0.25))
    alone = [asker.answer(asker.questions([row]), Downsample(keep=0.25))[0] for row in rows]
    assert [answer.row for answer in answers] == [0, 1, 2]
    for together, apart in zip(answers, alone, strict=True):
        assert together.text == apart.text
        assert (together.visual_tokens, together.kept_tokens) == (apart.visual_tokens, apart.kept_tokens)
    assert answers[0].visual_tokens > 0
    assert answers[0].kept_tokens == answers[0].left_tokens == pytest.approx(answers[0].visual_tokens / 4)
    assert (answers[2].visual_tokens, answers[2].kept_tokens, answers[2].left_tokens) == (0, 0, 0)
    staged = asker.answer(asker.questions(rows[:1]), ViTCoP(keep=0.25))[0]
    assert staged.left_tokens < staged.kept_tokens


def test_every_call_has_its_own_trace(asker: Asker, samples: list[Any]) -> None:
    inputs = asker.questions([(samples[0].images, samples[0].question)])
    first = asker.answer(inputs, Random(keep=0.5))[0]
    second = asker.answer(inputs, None)[0]
    assert first.prefill.keep_ratio == pytest.approx(0.5, abs=0.02)
    assert second.prefill.keep_ratio == 1
    assert first.trace is not second.trace
    assert len(first.trace.prefills) == len(second.trace.prefills) == 1


def test_threads_with_methods_of_their_own(asker: Asker, samples: list[Any]) -> None:
    inputs = asker.questions([(samples[0].images, samples[0].question)])
    found: dict[float, float] = {}

    def work(keep: float) -> None:
        for _ in range(3):
            found[keep] = asker.answer(inputs, Random(keep=keep))[0].prefill.keep_ratio

    threads = [threading.Thread(target=work, args=(keep,)) for keep in (1.0, 0.5, 0.25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {keep: pytest.approx(keep, abs=0.02) for keep in (1.0, 0.5, 0.25)}


def test_a_conversation_of_several_turns_and_images(asker: Asker, samples: list[Any]) -> None:
    one, two, _ = samples
    said = asker.answer(asker.questions([(one.images, one.question)]))[0]
    chat = [user(one.question, one.images), assistant(said.text), user(two.question, two.images)]
    answer = asker.ask([chat], Random(keep=0.5))[0]
    each = [asker.answer(asker.questions([(s.images, "?")]))[0].visual_tokens for s in (one, two)]
    assert answer.visual_tokens == sum(each)
    assert len({group.image for group in answer.prefill.groups}) == 2


def test_why_an_answer_ends(asker: Asker, samples: list[Any]) -> None:
    inputs = asker.questions([(s.images, s.question) for s in samples])
    whole = asker.answer(inputs)
    short = asker.answer(inputs, max_new_tokens=1)
    assert [answer.stop for answer in short] == ["length"] * 3
    assert [answer.tokens for answer in short] == [answer.tokens[:1] for answer in whole]
    letter = next(character for character in whole[0].text if character.isalnum())
    stopping = Asker(asker.model, asker.processor, 8, stop=(letter,))
    for answer, full in zip(stopping.answer(inputs), whole, strict=True):
        assert answer.text == full.text.partition(letter)[0].strip()
        assert answer.stop == ("stop string" if letter in full.text else "end")


def test_several_answers_a_row(asker: Asker, samples: list[Any]) -> None:
    inputs = asker.questions([(s.images, s.question) for s in samples[:2]])
    torch.manual_seed(0)
    answers = asker.answer(inputs, Random(keep=0.5), do_sample=True, num_return_sequences=3)
    assert [answer.row for answer in answers] == [0, 0, 0, 1, 1, 1]


def test_a_stream_is_the_answer_in_pieces(asker: Asker, samples: list[Any]) -> None:
    inputs = asker.questions([(samples[0].images, samples[0].question)])
    whole = asker.answer(inputs, Random(keep=0.5))[0]
    stream = asker.stream(inputs, Random(keep=0.5))
    assert "".join(stream).strip() == whole.text
    assert stream.answer.tokens == whole.tokens
    assert stream.answer.prefill.keep_ratio == whole.prefill.keep_ratio < 1
    with pytest.raises(InputError, match="One row"):
        asker.stream(asker.questions([(s.images, "?") for s in samples[:2]]))


def test_streams_with_methods_of_their_own_side_by_side(asker: Asker, samples: list[Any]) -> None:
    inputs = asker.questions([(samples[0].images, samples[0].question)])
    streams = [asker.stream(inputs, Random(keep=keep)) for keep in (1.0, 0.5, 0.25)]
    readers = [iter(stream) for stream in streams]
    for _ in zip(*readers, strict=False):
        pass
    kept = [stream.answer.prefill.keep_ratio for stream in streams]
    assert kept == [pytest.approx(keep, abs=0.02) for keep in (1.0, 0.5, 0.25)]


def test_a_stream_runs_in_the_callers_context_and_raises_its_errors(asker: Asker) -> None:
    mine: ContextVar[str] = ContextVar("mine", default="nobody's")
    mine.set("the caller's")

    def fail(**_: Any) -> None:
        raise ValueError(mine.get())

    with pytest.raises(ValueError, match="the caller's"):
        list(Stream(fail, asker.processor.tokenizer))


def test_leaving_a_stream_stops_the_model(asker: Asker, samples: list[Any]) -> None:
    inputs = asker.questions([(samples[0].images, samples[0].question)])
    calls: list[int] = []
    handle = asker.model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    try:
        stream = asker.stream(inputs, max_new_tokens=400, min_new_tokens=400)
        for _ in stream:
            break
        stream.close()
    finally:
        handle.remove()
    assert len(calls) < 400
    with pytest.raises(RuntimeError, match="left before its end"):
        _ = stream.answer


def test_no_part_of_a_stop_string_is_shown() -> None:
    class Tokenizer:
        def decode(self, tokens: list[int], **_: Any) -> str:
            return "".join("one END two"[token] for token in tokens)

    def run(streamer: Any, stopping_criteria: Any) -> str:
        streamer.put(torch.tensor([[0]]))  # the prompt
        for token in range(11):
            streamer.put(torch.tensor([token]))
        streamer.end()
        return "done"

    stream = Stream(run, Tokenizer(), ["END", "never"])
    assert "".join(stream) == "one "
    assert stream.answer == "done"
    assert "".join(Stream(run, Tokenizer(), ["two or more"])) == "one END two"


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [("a\nb", ["\n"], "a"), ("abc", ["c", "b"], "a"), ("abc", [], "abc"), ("abc", ["", "x"], "abc"), ("", ["a"], "")],
)
def test_cut(text: str, stops: list[str], expected: str) -> None:
    assert cut(text, stops) == expected


def test_prepared_inputs_are_those_of_foveate_prune(asker: Asker, samples: list[Any]) -> None:
    inputs = asker.questions([(samples[0].images, samples[0].question)])
    with foveate.prune(asker.model, Random(keep=0.3)) as trace:
        out = asker.model.generate(**inputs, max_new_tokens=8, do_sample=False)
    answer = asker.answer(inputs, Random(keep=0.3))[0]
    assert tuple(out[0, inputs["input_ids"].shape[1] :].tolist())[: len(answer.tokens)] == answer.tokens
    assert answer.prefill.alive_per_layer() == trace.last.alive_per_layer()
