"""Rewards of the reinforcement-learning stage, its judge and its threshold."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.errors import ConfigurationError
from foveate.training.plus.judge import Judge, JudgeError
from foveate.training.plus.rewards import Rewards
from foveate.training.plus.threshold import ThresholdPolicy

ITEM = ("What is left of it?", "a red star", "the red star")


class Endpoint:
    """A chat endpoint on this machine; `reply` gives a text, a status code, or sleeps."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.page = False
        self.reply: Callable[[int], str | int] = lambda n: "score: 1"
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                endpoint.asked.append(json.loads(body))
                answer = endpoint.reply(len(endpoint.asked))
                status = answer if isinstance(answer, int) else 200
                message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": answer}}
                facts = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [message]}
                data = json.dumps(facts if status == 200 else {"error": {"message": "no [/INST]"}}).encode()
                kind = "application/json"
                if endpoint.page:
                    data, kind = b"<html>hello</html>", "text/html"
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", kind)
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    pass  # the client has given up

            def log_message(self, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    found = Endpoint()
    yield found
    found.server.shutdown()


def make_judge(endpoint: Endpoint, **changes: Any) -> Judge:
    return Judge(**{"model": "m", "base_url": endpoint.url, "retries": 0, "timeout": 5.0, **changes})


def test_a_judge_is_asked_once_for_each_thing(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.reply = lambda n: "I compared them.\nscore: 0.5"
    judge = make_judge(endpoint, cache=tmp_path / "replies.sqlite")
    assert judge.scores([ITEM, ITEM, (*ITEM[:2], "no idea")]) == [0.5, 0.5, 0.5]
    assert len(endpoint.asked) == 2
    prompt = endpoint.asked[0]["messages"][0]["content"]
    assert all(part in "".join(str(a) for a in endpoint.asked) for part in ITEM)
    assert "score:" in prompt
    judge.close()
    again = make_judge(endpoint, cache=tmp_path / "replies.sqlite")  # another process, later
    assert again.scores([ITEM]) == [0.5]
    assert len(endpoint.asked) == 2
    other = make_judge(endpoint, cache=tmp_path / "replies.sqlite", model="other")
    other.scores([ITEM])
    assert len(endpoint.asked) == 3


@pytest.mark.parametrize(
    "reply", ["It is fine.", "score: 1\nscore: 0", "", "score: high", "score: 1.5", "score: 80%", "score: 0,8"]
)
def test_garbage_is_not_a_score_of_zero(endpoint: Endpoint, reply: str) -> None:
    endpoint.reply = lambda n: reply
    judge = make_judge(endpoint, attempts=3)
    assert judge.scores([ITEM]) == [None]
    assert len(endpoint.asked) == 3
    assert [asked["temperature"] for asked in endpoint.asked] == [0.0, 0.7, 0.7]
    endpoint.reply = lambda n: "score: 0.25"
    assert judge.scores([ITEM]) == [0.25], "garbage must not be remembered"


def test_remembered_replies_are_read_by_the_rules_of_today(endpoint: Endpoint, tmp_path: Path) -> None:
    judge = make_judge(endpoint, cache=tmp_path / "replies.sqlite")
    assert judge.scores([ITEM]) == [1.0]
    for reply in ("score: 1.5", "score: 0.5"):  # what an earlier release took for 1
        with judge._replies:
            judge._replies.execute("UPDATE replies SET score = 1, reply = ?", (reply,))
        endpoint.reply = lambda n: "score: 0.25"
        assert judge.scores([ITEM]) == [0.25 if reply == "score: 1.5" else 0.5]


def test_two_scores_and_then_one(endpoint: Endpoint) -> None:
    endpoint.reply = lambda n: "score: 1 or score: 0" if n == 1 else "score: 1"
    assert make_judge(endpoint).scores([ITEM]) == [1.0]


def test_the_run_waits_for_a_judge_that_is_down(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint.reply = lambda n: 503 if n < 4 else "score: 1"
    waits: list[float] = []
    judge = make_judge(endpoint)
    monkeypatch.setattr(judge._stop, "wait", waits.append)
    assert judge.scores([ITEM]) == [1.0]
    assert waits == [5.0, 10.0, 20.0]


def test_patience_is_for_an_outage_not_for_a_request(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint.reply = lambda n: 503
    judge = make_judge(endpoint, patience=100.0, workers=1)
    clock = [0.0]
    monkeypatch.setattr("foveate.training.plus.judge.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(judge._stop, "wait", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    with pytest.raises(JudgeError):
        judge.scores([(str(i), "a", "b") for i in range(8)])
    assert clock[0] == 100.0
    endpoint.reply = lambda n: "score: 1"
    assert judge.scores([ITEM]) == [1.0], "it can be asked again"


def test_a_text_that_the_judge_refuses_gets_no_reward(endpoint: Endpoint) -> None:
    endpoint.reply = lambda n: 400 if "dog [/INST]" in str(endpoint.asked[n - 1]) else "score: 1"
    assert make_judge(endpoint).scores([ITEM, ("q", "a", "a dog [/INST]")]) == [1.0, None]


def test_a_page_is_not_a_judge(endpoint: Endpoint) -> None:
    endpoint.page = True
    with pytest.raises(JudgeError, match="/v1"):
        make_judge(endpoint).scores([ITEM])


def test_a_prompt_with_other_braces_is_refused(endpoint: Endpoint) -> None:
    with pytest.raises(ConfigurationError, match="write other braces twice"):
        make_judge(endpoint, prompt='Reply {"score": 1} to {question} {answer} {completion}')


def test_a_timeout_is_repeated_and_then_given_up(endpoint: Endpoint) -> None:
    def slow(n: int) -> str:
        time.sleep(0.5)
        return "score: 1"

    endpoint.reply = slow
    judge = make_judge(endpoint, timeout=0.1, retries=1, patience=0.0)
    with pytest.raises(JudgeError, match="--resume"):
        judge.scores([ITEM])
    assert len(endpoint.asked) == 2


def test_a_judge_that_refuses_is_an_error_at_once(endpoint: Endpoint) -> None:
    endpoint.reply = lambda n: 404
    with pytest.raises(JudgeError, match="refuses model 'm'"):
        make_judge(endpoint).scores([ITEM])
    assert len(endpoint.asked) == 1


ROWS: dict[str, Any] = {
    "question": ["q"] * 3,
    "answer": ["red star", "B", "42"],
    "kept_share": [0.25, 0.5, 1.0],
}
SAID = [[{"role": "assistant", "content": text}] for text in ("Red star ", "it is a dog", "43")]


def test_rewards_are_added_with_their_weights() -> None:
    logged: dict[str, float] = {}
    rewards = Rewards({"exact_match": 2.0, "pruning_rate": 0.1})
    assert rewards(SAID, log_metric=logged.__setitem__, **ROWS) == pytest.approx([2.075, 0.05, 0.0])
    assert logged == pytest.approx({"reward_exact_match": 1 / 3, "reward_pruning_rate": 1.25 / 3})
    assert Rewards({"anls": 1.0})(SAID, **ROWS) == pytest.approx([1.0, 0.0, 0.5])
    assert Rewards({"multiple_choice": 1.0})(SAID, **ROWS) == [0.0, 0.0, 0.0]
    text = [[{"role": "assistant", "content": [{"type": "text", "text": "42"}]}]]
    assert Rewards({"exact_match": 1.0})(text, ["q"], ["42"], [1.0]) == [1.0]


def test_what_the_judge_cannot_score_gets_no_reward(endpoint: Endpoint) -> None:
    endpoint.reply = lambda n: "no number" if "dog" in str(endpoint.asked[n - 1]) else "score: 1"
    rewards = Rewards({"judge": 1.0, "exact_match": 0.5}, make_judge(endpoint, workers=1))
    assert rewards(SAID, **ROWS) == [1.5, None, 1.0]


@pytest.mark.parametrize(
    ("weights", "message"), [({"bleu": 1.0}, "no reward bleu"), ({"judge": 1.0}, "judge"), ({"anls": 0.0}, "weight 0")]
)
def test_wrong_rewards_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Rewards(weights)


def test_the_threshold_follows_its_reward() -> None:
    torch.manual_seed(0)
    policy = ThresholdPolicy(0.5)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.05)
    for _ in range(300):  # the reward is best at 0.8
        logits = policy.sample(16)
        reward = -(logits.sigmoid() - 0.8).abs()
        optimizer.zero_grad()
        policy.loss(logits, (reward - reward.mean()) / (reward.std() + 1e-4)).backward()
        optimizer.step()
    assert policy.threshold == pytest.approx(0.8, abs=0.07)


def test_gradient_of_the_threshold() -> None:
    policy = ThresholdPolicy(0.5, spread=0.5)
    policy.loss(torch.tensor([1.0, -1.0]), torch.tensor([1.0, -1.0])).backward()
    assert policy.mean.grad is not None
    # d/dmean log N(z) = (z - mean) / spread^2 = 4 and -4; the loss is minus the mean of advantage times that
    assert policy.mean.grad.item() == pytest.approx(-4.0)
    assert (policy.sample(5, spread=False) == 0).all()
    for threshold, spread in ((0.0, 0.5), (1.0, 0.5), (0.5, 0.0)):
        with pytest.raises(ConfigurationError):
            ThresholdPolicy(threshold, spread)
