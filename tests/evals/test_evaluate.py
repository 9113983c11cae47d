"""A whole evaluation on the zoo's model: scores, resuming after kill -9, skipped samples, batches, reports."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import foveate
from foveate.cli.app import app
from foveate.errors import DataError
from foveate.evals import evaluate as module
from foveate.evals import html, runner
from foveate.evals.evaluate import Evaluation, Plan, evaluate
from foveate.evals.store import StoreError
from foveate.inference.batches import build_batch
from foveate.scoring import MetricError
from foveate.specs.settings import Setting, grid
from foveate.zoo import DEFAULT

METHODS, KEEPS, N = ["random", "downsample"], [0.5, 1 / 9], 10
ARGUMENTS = ["--limit", str(N), "--method", "random", "--method", "downsample", "--keep", "0.5,1/9", "--batch", "3"]


@pytest.fixture(scope="module", autouse=True)
def one_load() -> None:
    """Loading the model once is enough."""
    loaded = foveate.load(DEFAULT)
    patch = pytest.MonkeyPatch()
    patch.setattr("foveate.inference.loading.load", lambda *args, **kwargs: loaded)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    out = tmp_path_factory.mktemp("eval") / "whole"
    return Plan(DEFAULT, "scenes", grid(METHODS, KEEPS), out, limit=N, batch=3)


@pytest.fixture(scope="module")
def whole(plan: Plan) -> Evaluation:
    return evaluate(plan)


def predictions(out: Path) -> dict[tuple[str, str], str]:
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()[1:]]
    found = {(r["setting"], r["sample"]): r["prediction"] for r in records}
    assert len(found) == len(records), "an answer was stored twice"
    return found


def test_scores_are_those_of_the_stock_model(whole: Evaluation) -> None:
    model, processor = foveate.load(DEFAULT)
    right = 0
    for sample in whole.task:
        inputs = build_batch(model, processor, [(sample.load_images(), sample.question)])
        out = model.generate(**inputs, max_new_tokens=32, do_sample=False)
        text = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        right += text.strip() == sample.answers[0]
    assert whole.asker.max_new_tokens == 32
    reference = whole.found["results"][0]
    assert reference["score"] == right / N > 0
    assert reference["retention"] == 1
    assert reference["kept"] == 1


def test_rows_have_kept_tokens_types_and_intervals(whole: Evaluation) -> None:
    rows = {row["setting"]: row for row in whole.found["results"]}
    assert list(rows) == ["unpruned", "random 1/2", "random 1/9", "downsample 1/2", "downsample 1/9"]
    assert rows["random 1/2"]["kept"] == pytest.approx(0.5, abs=0.01)
    assert rows["random 1/9"]["kept"] == pytest.approx(1 / 9, abs=0.01)
    assert (rows["unpruned"]["left"], rows["random 1/9"]["left"]) == (1, pytest.approx(rows["random 1/9"]["kept"]))
    for row in rows.values():
        low, high = row["score_interval"]
        assert low <= row["score"] <= high
        assert row["samples"] == N == sum(kind["samples"] for kind in row["by_type"].values())
        assert row["score"] == pytest.approx(sum(k["score"] * k["samples"] for k in row["by_type"].values()) / N)
        assert row["prefill_ms"] > 0
        assert row["ttft_ms"] >= row["prefill_ms"]
        assert row["ttft_ratio"] > 0
    assert rows["random 1/9"]["kv_bytes"] < rows["random 1/2"]["kv_bytes"] < rows["unpruned"]["kv_bytes"]


def test_a_second_run_computes_nothing(plan: Plan, whole: Evaluation) -> None:
    before = (plan.out / "results.jsonl").read_bytes()
    again = evaluate(plan)
    assert again.found["computed_now"] == 0
    assert whole.found["computed_now"] == 5 * N
    assert (plan.out / "results.jsonl").read_bytes() == before
    assert again.found["results"] == whole.found["results"]


def test_killed_and_resumed_equals_uninterrupted(plan: Plan, whole: Evaluation, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    results = out / "results.jsonl"
    command = [sys.executable, "-c", "from foveate.cli import main; main()", "eval", *ARGUMENTS, "--no-report"]
    process = subprocess.Popen([*command, "--out", str(out)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not results.exists() or len(results.read_bytes().splitlines()) < 8:
            assert process.poll() is None, "finished before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with results.open("ab") as file:
        file.write(b'{"setting": "torn')  # what a kill in the middle of a write leaves
    already = len(results.read_bytes().splitlines()) - 2
    resumed = evaluate(replace(plan, out=out))
    assert 0 < already < 5 * N
    assert resumed.found["computed_now"] >= 5 * N - already
    assert predictions(out) == predictions(plan.out)
    timeless = [
        [{k: v for k, v in row.items() if not (k.endswith("_ms") or "ttft" in k)} for row in e.found["results"]]
        for e in (whole, resumed)
    ]
    assert timeless[0] == timeless[1]


def test_more_samples_and_settings_reuse_what_is_there(plan: Plan, whole: Evaluation, tmp_path: Path) -> None:
    out = tmp_path / "grown"
    first = evaluate(replace(plan, out=out, limit=4, settings=plan.settings[:2]))
    more = evaluate(replace(plan, out=out, limit=6, settings=plan.settings[:3]))
    assert first.found["computed_now"] == 8
    assert more.found["computed_now"] >= 10
    assert len(predictions(out)) == 18
    other = evaluate(replace(plan, out=out, limit=2, settings=plan.settings[:2]))
    assert other.found["computed_now"] == 0
    assert other.found["results"][0]["samples"] == 2


def test_batches_answer_as_single_questions(plan: Plan, whole: Evaluation, tmp_path: Path) -> None:
    single = replace(plan, out=tmp_path / "single", batch=1, settings=plan.settings[:3])
    evaluate(single)
    batched = predictions(plan.out)
    assert all(batched[key] == text for key, text in predictions(single.out).items())


def test_a_changed_question_or_model_is_another_run(plan: Plan, whole: Evaluation) -> None:
    with pytest.raises(StoreError, match="prompt"):
        evaluate(replace(plan, prompt="{question} Please."))
    with pytest.raises(StoreError, match="max_new_tokens"):
        evaluate(replace(plan, max_new_tokens=3))


def test_the_fingerprint_tells_weights_apart() -> None:
    from tests.tiny import qwen

    model = qwen()
    before = runner.fingerprint(model)
    assert runner.fingerprint(model) == before
    model.lm_head.weight.data[0, 0] += 1
    assert runner.fingerprint(model) != before


@pytest.fixture
def own_data(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        Image.new("RGB", (112, 112), "red").save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:50])
    rows = [{"image": f"{name}.png", "question": "Which colour?", "answer": "red"} for name in "abc"]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "d.jsonl"


def test_unreadable_images_stop_or_are_counted(plan: Plan, own_data: Path, tmp_path: Path) -> None:
    own = replace(plan, data=str(own_data), out=tmp_path / "own", limit=None, batch=2)
    with pytest.raises(DataError, match=r"d\.jsonl row 2: .*b\.png.*--skip-bad"):
        evaluate(own)
    found = evaluate(replace(own, skip_bad=True)).found
    assert found["results"][0]["samples"] == 2
    assert len(found["skipped"]) == 1
    assert "row 2" in found["skipped"][0]


def test_nothing_readable_is_an_error(plan: Plan, own_data: Path, tmp_path: Path) -> None:
    for name in "abc":
        (own_data.parent / f"{name}.png").write_bytes(b"")
    with pytest.raises(DataError, match="every one of them was skipped"):
        evaluate(replace(plan, data=str(own_data), out=tmp_path / "own", skip_bad=True))


def test_the_html_report_is_self_contained(plan: Plan, whole: Evaluation, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    module.illustrate(whole, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert page.count("data:image/jpeg") >= 2
    assert "random 1/9" in page
    assert page.count("<details>") == 1
    texts = re.findall(r'<img alt="([^"]*)"', page)
    assert len(texts) == page.count("<img ")
    assert "random 1/9: " in texts[0]
    assert all(" visual tokens per layer" in text for text in texts[1:])
    assert (tmp_path / "pareto.png").stat().st_size > 10_000


def test_worst_cases_are_those_lost_to_pruning(whole: Evaluation) -> None:
    groups = html.groups(whole.asker, whole.task, whole.settings, whole.answers)
    for group in groups:
        for case in group["cases"]:
            if group["title"].startswith("Worst"):
                assert case["reference_score"] > case["score"]
            elif group["title"].startswith("Best"):
                assert case["reference_score"] < case["score"]


def test_there_are_pictures_even_if_nothing_was_right(whole: Evaluation) -> None:
    wrong = [replace(one, scores=np.zeros_like(one.scores)) for one in whole.answers]
    (group,) = html.groups(whole.asker, whole.task, whole.settings, wrong)
    assert group["title"] == "Examples: none was right"
    assert [case["setting"] for case in group["cases"]] == [setting.name for setting in whole.settings[1:]]


def test_the_page_escapes_what_models_say(whole: Evaluation) -> None:
    pytest.importorskip("jinja2")
    from foveate.evals.plots import pareto

    case = whole.answers[0].records[0] | {
        "picture": "", "prediction": "<script>x</script>", "reference": "", "score": 0.0, "reference_score": 1.0,
    }  # fmt: skip
    figure = pareto(whole.found["results"], "t", "m")
    page = html.render(whole.found, figure, [{"title": "t", "cases": [case]}])
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_the_command_writes_everything(tmp_path: Path) -> None:
    options = ["eval", "--limit", "4", "--method", "random", "--keep", "1/9", "--out", str(tmp_path / "o")]
    result = CliRunner().invoke(app, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "random 1/9" in result.output
    names = {path.name for path in (tmp_path / "o").iterdir()}
    assert names == {"results.jsonl", "summary.json", "summary.csv", "pareto.png", "report.html"}


def test_an_unknown_metric_is_refused_at_once(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(MetricError, match="bleu"):
        evaluate(replace(plan, out=tmp_path / "x", metric="bleu"))
    assert not (tmp_path / "x").exists()


def test_a_metric_that_cannot_score_names_the_sample(plan: Plan, whole: Evaluation) -> None:
    with pytest.raises(MetricError, match=r"sample test:0: .*at least 4"):
        evaluate(replace(plan, metric="vqa_accuracy"))


def test_a_setting_in_full_is_the_key() -> None:
    full = Setting("x", "random", {"keep": 0.5}).describe()
    assert full == "random(keep=0.5, layer=0, seed=0)"
    assert full != Setting("x", "random", {"keep": 0.5, "seed": 1}).describe()
