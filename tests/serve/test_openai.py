"""The protocol, tried with the real client against a live server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from foveate.inference.chats import assistant, user
from foveate.inference.pruning import resolve
from foveate.methods import make
from foveate.serve.options import ServeOptions
from tests.serve.live import MODEL, body, data_uri, post, scenes, served, turn, zoo_asker

OPTIONS = ServeOptions(
    methods=("visionzip", "fastv", "glimpse_prune"), keep_range=(0.1, 1.0), rows=8, most_new_tokens=64
)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(OPTIONS) as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, messages: list[Any], **more: Any) -> Any:
    given: dict[str, Any] = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 12} | more
    return client.chat.completions.create(**given)


def offline(chat: list[Any], method: Any, **more: Any) -> Any:
    asker = zoo_asker()
    return asker.answer(asker.inputs([chat]), method, max_new_tokens=more.pop("max_new_tokens", 12), **more)[0]


def test_an_answer_is_the_offline_one(client: openai.OpenAI) -> None:
    for image, question in scenes(4):
        reply = ask(client, [turn([image], question)])
        expected = offline([user(question, [image])], make("vitcop", keep=1 / 3))
        (choice,) = reply.choices
        assert choice.message.content == expected.text
        assert choice.finish_reason == {"end": "stop"}.get(expected.stop, "length")
        assert reply.usage.completion_tokens == len(expected.tokens)
        assert reply.usage.prompt_tokens == expected.prefill.length
        told = reply.foveate
        assert told["visual_tokens"] == expected.visual_tokens
        assert told["kept_tokens"] == pytest.approx(expected.kept_tokens, abs=0.01)
        assert told["kv_bytes"] == expected.prefill.kv_bytes
        assert told["kv_bytes_unpruned"] == expected.prefill.kv_bytes_unpruned
        assert told["ttft_ms"] >= told["queue_ms"] >= 0
        assert told["select_ms"] > 0


def test_a_stream_is_the_same_answer_in_pieces(client: openai.OpenAI) -> None:
    image, question = scenes(1)[0]
    messages = [turn([image], f"{question} Answer in a sentence.")]
    whole = ask(client, messages, max_tokens=24)
    chunks = list(ask(client, messages, max_tokens=24, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage
    assert chunks[-1].foveate["kept_tokens"] == whole.foveate["kept_tokens"]
    assert len({chunk.id for chunk in chunks}) == 1
    plain = list(ask(client, messages, max_tokens=24, stream=True))
    assert plain[-1].foveate["visual_tokens"] == whole.foveate["visual_tokens"]
    assert all(chunk.usage is None for chunk in plain)


def test_each_request_chooses_its_pruning(client: openai.OpenAI) -> None:
    image, question = scenes(2)[1]
    for chosen, method in (
        ({"keep": 0.2}, make("vitcop", keep=0.2)),
        ({"keep": 1}, make("vitcop", keep=1.0)),
        ({"method": "visionzip", "keep": 0.25}, make("visionzip", keep=0.25)),
        ({"method": "fastv", "keep": 0.5}, make("fastv", keep=0.5)),
        ({"method": "none"}, None),
    ):
        reply = ask(client, [turn([image], question)], extra_body={"foveate": chosen})
        expected = offline([user(question, [image])], method)
        assert reply.choices[0].message.content == expected.text
        assert reply.foveate["kept_tokens"] == pytest.approx(expected.kept_tokens, abs=0.01)
        assert reply.foveate["method"] == (str(method) if method is not None else "none")


def test_a_trained_module_beside_the_model(client: openai.OpenAI) -> None:
    """GlimpsePrune appends a probe to the prompt and decides by itself how much to keep."""
    method = resolve(zoo_asker().model, "glimpse_prune")
    cases = [({"method": "glimpse_prune"}, method), ({}, make("vitcop", keep=1 / 3))] * 3
    questions = [(*scene, *case) for scene, case in zip(scenes(6), cases, strict=True)]
    with ThreadPoolExecutor(6) as pool:  # all in one batch
        replies = list(
            pool.map(lambda q: ask(client, [turn([q[0]], q[1])], extra_body={"foveate": q[2]}), questions)
        )  # fmt: skip
    for reply, (image, question, _, chosen) in zip(replies, questions, strict=True):
        expected = offline([user(question, [image])], chosen)
        assert reply.choices[0].message.content == expected.text
        assert reply.foveate["kept_tokens"] == pytest.approx(expected.kept_tokens, abs=0.01)


@pytest.mark.parametrize(
    ("chosen", "param"),
    [
        ({"keep": 0.05}, "foveate.keep"),
        ({"keep": 2}, "foveate.keep"),
        ({"method": "divprune"}, "foveate.method"),
        ({"method": "none", "keep": 0.5}, "foveate.keep"),
        ({"module": "/etc"}, "foveate.module"),
        ({"method": "/etc/passwd.json"}, "foveate.method"),
    ],
)
def test_choices_outside_the_operators_range(client: openai.OpenAI, chosen: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, [turn([], "Hello")], extra_body={"foveate": chosen})
    assert caught.value.param == param


def test_several_turns_images_and_a_system_message(client: openai.OpenAI) -> None:
    (first, question), (second, other) = scenes(2)
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        turn([first, data_uri(second, "JPEG")], question),
        {"role": "assistant", "content": "blue"},
        turn([], other),
    ]
    reply = ask(client, messages)
    import base64
    import io

    from PIL import Image

    jpeg = Image.open(io.BytesIO(base64.b64decode(data_uri(second, "JPEG").partition(",")[2])))
    system = {"role": "system", "content": [{"type": "text", "text": "You are a helpful assistant."}]}
    chat = [system, user(question, [first, jpeg]), assistant("blue"), user(other)]
    assert reply.choices[0].message.content == offline(chat, make("vitcop", keep=1 / 3)).text


def test_text_alone(client: openai.OpenAI) -> None:
    reply = ask(client, [{"role": "user", "content": "Hello"}])
    assert reply.choices[0].message.content == offline([user("Hello")], None).text
    assert reply.foveate["visual_tokens"] == 0


def test_sampling_n_seed_and_stop(client: openai.OpenAI) -> None:
    image, question = scenes(3)[2]
    more: dict[str, Any] = {"temperature": 1.5, "top_p": 0.95, "n": 4, "seed": 11, "max_tokens": 8}
    one, two = (ask(client, [turn([image], question)], **more) for _ in range(2))
    texts = [[choice.message.content for choice in reply.choices] for reply in (one, two)]
    assert texts[0] == texts[1]
    assert [choice.index for choice in one.choices] == [0, 1, 2, 3]
    greedy = ask(client, [turn([image], question)]).choices[0].message.content
    stop = greedy[1:3]
    cut = ask(client, [turn([image], question)], stop=[stop])
    assert cut.choices[0].message.content == greedy.partition(stop)[0].strip()
    assert cut.choices[0].finish_reason == "stop"
    many = list(ask(client, [turn([image], question)], stream=True, **more))
    streamed = dict.fromkeys(range(4), "")
    for chunk in many:
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert list(streamed.values()) == texts[0]


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "foveate"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-x")
    with pytest.raises(openai.NotFoundError):
        ask(client, [turn([], "Hello")], model="gpt-x")


def test_pages(address: str) -> None:
    import httpx2

    page = httpx2.get(f"{address}/openapi.json").json()
    fields = page["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"messages", "foveate", "max_tokens"} <= set(fields["properties"])
    assert httpx2.get(f"{address}/docs").status_code == 200
    assert httpx2.get(f"{address}/health").json() == {"status": "ok"}
    post(address, body())
    metrics = httpx2.get(f"{address}/metrics").text
    assert 'foveate_requests_total{status="200"}' in metrics
    assert "foveate_time_to_first_token_seconds_bucket" in metrics
    assert "foveate_rows 0.0" in metrics


def test_llava_too() -> None:
    name = "foveate/scenes-llava"
    with served(OPTIONS, method="fastv", keep=0.5, name=name) as (address, _):
        image, question = scenes(1)[0]
        reply = post(address, body([image], question, model=name)).json()
    asker = zoo_asker(name)
    expected = asker.answer(asker.questions([([image], question)]), make("fastv", keep=0.5), max_new_tokens=12)[0]
    assert reply["choices"][0]["message"]["content"] == expected.text
