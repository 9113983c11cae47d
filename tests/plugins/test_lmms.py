"""lmms-eval end to end on the packaged scenes. Skipped without the extra `foveate[lmms]`."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import foveate
import foveate.errors
import foveate.evals.evaluate
from foveate.inference.batches import build_batch
from foveate.plugins.lmms import scenes as lmms_scenes
from foveate.scenes import load
from foveate.specs.choose import choose_method
from foveate.zoo import DEFAULT


def _available() -> str | None:
    try:
        importlib.import_module("lmms_eval.evaluator")
    except Exception as error:  # the extra is absent, or a torchvision beside it that does not fit this torch
        return f"{type(error).__name__}: {error}"
    return None


def test_the_packaged_task_needs_no_lmms_eval() -> None:
    rows = [json.loads(line) for line in (lmms_scenes.FOLDER / "samples.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(1000))
    sample = load("test", 1, 7)[0]
    doc = rows[7]
    assert lmms_scenes.text(doc) == sample.question
    assert lmms_scenes.visual(doc)[0].tobytes() == sample.image.tobytes()
    assert lmms_scenes.results(doc, [sample.answer])["exact_match"] == 1
    assert lmms_scenes.results(doc, ["?"]) == {"exact_match": 0, f"exact_match_{sample.need}": 0}


@pytest.fixture(scope="module")
def adapter():
    if reason := _available():
        pytest.skip(f"lmms-eval cannot be imported ({reason})")
    from foveate.plugins.lmms.model import Foveate

    return Foveate(DEFAULT, method="vitcop", keep="1/3", batch_size=3)


def messages(doc: dict) -> list[dict]:
    image, text = lmms_scenes.visual(doc)[0], lmms_scenes.text(doc)
    return [{"role": "user", "content": [{"type": "image", "url": image}, {"type": "text", "text": text}]}]


def requests(adapter, count: int, to_messages, options: dict) -> list:
    docs = [{"index": i} for i in range(count)]
    adapter.task_dict = {"t": {"test": docs}}
    return [SimpleNamespace(args=("ctx", to_messages, options, i, "t", "test")) for i in range(count)]


def answers(adapter, count: int) -> list[str]:
    """The same questions through this library alone."""
    found = []
    for i in range(count):
        doc = {"index": i}
        inputs = build_batch(adapter.model, adapter.processor, [(lmms_scenes.visual(doc), lmms_scenes.text(doc))])
        with foveate.prune(adapter.model, adapter.method):
            out = adapter.model.generate(**inputs, max_new_tokens=8, do_sample=False)
        text = adapter.processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        found.append(text[0].strip())
    return found


def test_generate_until(adapter) -> None:
    given = {"max_new_tokens": 8, "temperature": 0, "until": ["\n\n"]}
    results = adapter.generate_until(requests(adapter, 7, messages, given))
    assert [result.text for result in results] == answers(adapter, 7)
    assert all(result.token_counts.output_tokens >= 1 for result in results)
    assert all(0.3 < kept < 0.36 for kept in adapter.kept)


def test_rounds_end_when_the_task_says_so(adapter) -> None:
    seen = []

    def rounds(doc, round_idx=0, previous_output=None, previous_round_info=None):
        if round_idx == 0:
            return messages(doc)
        seen.append((round_idx, list(previous_output), previous_round_info))
        return messages({"index": 5}), round_idx == 2, previous_output, f"info {round_idx}"

    given = {"max_new_tokens": 8}
    found = adapter.generate_until_multi_round(requests(adapter, 1, rounds, given))
    both = answers(adapter, 6)
    assert found == [[both[0], both[5]]]
    assert seen == [(1, [both[0]], None), (2, [both[0], both[5]], "info 1")]


@pytest.mark.parametrize("method", ["none", "vitcop"])
def test_loglikelihood(adapter, method: str) -> None:
    adapter.method = choose_method(method, **({"keep": 1 / 3} if method != "none" else {}))
    doc = {"index": 1}
    adapter.task_dict = {"t": {"test": {1: doc}}}
    greedy = answers(adapter, 2)[1]

    def ask(target: str) -> tuple[float, bool]:
        arguments = (lmms_scenes.text(doc), target, lmms_scenes.visual, 1, "t", "test")
        return adapter.loglikelihood([SimpleNamespace(args=arguments)])[0]

    likely, is_greedy = ask(greedy)
    assert is_greedy
    other, other_greedy = ask("zzz9")
    assert not other_greedy
    assert other < likely <= 0
    if method == "none":  # without pruning: one plain forward pass over prompt and continuation
        inputs = build_batch(adapter.model, adapter.processor, [(lmms_scenes.visual(doc), lmms_scenes.text(doc))])
        ids = adapter.processor.tokenizer("zzz9", add_special_tokens=False, return_tensors="pt")["input_ids"]
        whole = dict(inputs) | {
            "input_ids": torch.cat([inputs["input_ids"], ids], 1),
            "attention_mask": torch.ones(1, inputs["input_ids"].shape[1] + ids.shape[1], dtype=torch.long),
        }
        whole["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(ids).int()], 1)
        with torch.no_grad():
            logits = adapter.model(**whole).logits[0, -ids.shape[1] - 1 : -1].log_softmax(-1)
        assert other == pytest.approx(float(logits.gather(1, ids[0, :, None]).sum()), abs=1e-3)


def test_text_that_the_model_would_take_for_an_image(adapter) -> None:
    def marked(doc: dict) -> list[dict]:
        return [{"role": "user", "content": [{"type": "text", "text": "<|image_pad|>?"}]}]

    with pytest.raises(foveate.errors.InputError, match="the question holds"):
        adapter.generate_until(requests(adapter, 1, marked, {"max_new_tokens": 8}))
    arguments = ("What?", "<|image_pad|>", lambda doc: [], 0, "t", "test")
    with pytest.raises(foveate.errors.InputError, match="the continuation holds"):
        adapter.loglikelihood([SimpleNamespace(args=arguments)])


def test_wrong_arguments(adapter) -> None:
    from foveate.plugins.lmms.model import Foveate

    with pytest.raises(foveate.errors.ConfigurationError, match="no parameter kep"):
        Foveate(DEFAULT, method="vitcop", kep=0.1)
    with pytest.raises(foveate.errors.ConfigurationError, match="batch_size=auto"):
        Foveate(DEFAULT, batch_size="auto")


def test_the_tool_end_to_end(adapter, tmp_path: Path) -> None:
    from lmms_eval import evaluator
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.tasks import TaskManager

    from foveate.plugins.lmms.manifest import manifest

    MODEL_REGISTRY_V2.register_manifest(manifest, overwrite=True)  # as the entry point does once installed
    found = evaluator.simple_evaluate(
        model="foveate",
        model_args=f"pretrained={DEFAULT},method=random,keep=1/9",
        tasks=["foveate_scenes"],
        task_manager=TaskManager(include_path=str(lmms_scenes.FOLDER), model_name="foveate"),
        limit=6,
        batch_size=3,
    )
    scores = found["results"]["foveate_scenes"]
    own = foveate.evals.evaluate  # the same questions through foveate eval
    plan = own.Plan(DEFAULT, "scenes", own_grid(), tmp_path, limit=6, batch=3, max_new_tokens=16)
    expected = own.evaluate(plan).found["results"][1]["score"]
    assert next(v for k, v in scores.items() if k.startswith("exact_match,")) == pytest.approx(expected)


def own_grid():
    from foveate.specs.settings import grid

    return grid(["random"], [1 / 9])
