"""Settings as users write them, interleaved timing, memory in a fresh process, reports and the command."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import foveate
import foveate.errors
from foveate.bench import measure, memory, report
from foveate.bench.job import Job
from foveate.bench.run import calls, run
from foveate.bench.subject import prepare
from foveate.bench.tables import TABLES
from foveate.cli.app import app
from foveate.errors import ConfigurationError
from foveate.families import presets, prompts
from foveate.inference.batches import build_batch
from foveate.methods import make
from foveate.specs.grammar import parse_keeps
from foveate.specs.settings import Setting, grid
from tests.tiny import Tiny, make_tiny

SMALL = 16


@pytest.fixture(scope="module")
def job() -> Job:
    return Job("mid-qwen2.5-vl", SMALL, None, "", 2, 3, "float32", "sdpa", 0, 1)


@pytest.fixture(scope="module")
def found(job: Job) -> dict:
    done = []
    settings = grid(["vitcop", "random"], [0.5])
    result = run(job, settings, repeats=3, warmup=1, weigh=False, command="here", on_call=lambda: done.append(1))
    assert len(done) == calls(settings, 3, 1, False)
    return result


def test_keeps_and_methods_as_users_write_them() -> None:
    assert parse_keeps(["1/9,0.5", "64", "1"]) == [pytest.approx(1 / 9), 0.5, 64, 1.0]
    names = [s.name for s in grid(["vitcop", "random:keep=0.25,seed=3"], [1 / 9, 0.5])]
    assert names == ["unpruned", "vitcop 1/9", "vitcop 1/2", "random 1/4 seed=3"]
    assert grid(["random:seed=3"], [])[1].make() == make("random", seed=3)
    assert grid(["vitcop:deep_divisor=4,saliency=key_norm,official=False"], [0.2])[1].make() == make(
        "vitcop", keep=0.2, deep_divisor=4, saliency="key_norm", official=False
    )


@pytest.mark.parametrize(
    ("methods", "keeps", "words"),
    [
        (["nothing"], [0.5], "'nothing'"),
        (["random:sead=1"], [0.5], "no parameter sead"),
        (["random:seed"], [0.5], "parameter=value"),
        (["random", "random"], [0.5], "Asked for twice: random 1/2"),
        (["random"], [1.5], r"must lie in \(0, 1\]"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(methods, keeps, words: str) -> None:
    with pytest.raises(foveate.errors.FoveateError, match=words):
        grid(methods, keeps)


@pytest.mark.parametrize("text", ["much", "1/0", ""])
def test_a_keep_that_is_no_number(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--keep"):
        parse_keeps([text])


def test_kv_bytes_are_exact(found: dict) -> None:
    text = prepare_model().config.get_text_config()
    per_token = 2 * text.num_key_value_heads * text.hidden_size // text.num_attention_heads * 4
    for row in found["results"]:
        batch, length = 2, SMALL + 2 + prompts.TEXT_TOKENS
        alive = [n // batch for n in row["alive_per_layer"]]
        held = sum(length - SMALL + n for n in alive)
        assert row["kv_bytes"] == batch * held * per_token
        assert row["kv_bytes_unpruned"] == batch * text.num_hidden_layers * length * per_token


def prepare_model() -> torch.nn.Module:
    return presets.build("mid-qwen2.5-vl", SMALL)


def test_every_time_is_there_and_adds_up(found: dict) -> None:
    unpruned, *pruned = found["results"]
    assert [row["setting"] for row in found["results"]] == ["unpruned", "vitcop 1/2", "random 1/2"]
    for row in found["results"]:
        for number in range(3):
            times = {name: values["rounds"][number] for name, values in row["times"].items()}
            assert times["select_ms"] <= times["prefill_ms"]
            assert times["vision_ms"] + times["prefill_ms"] <= times["first_token_ms"] <= times["total_ms"]
            assert times["total_ms"] == pytest.approx(times["first_token_ms"] + 2 * times["decode_ms"], rel=0.2)
        prefill = row["times"]["prefill_ms"]
        assert prefill["min"] <= prefill["median"] <= prefill["max"]
        assert prefill["spread"] == pytest.approx((prefill["max"] - prefill["min"]) / prefill["median"])
        assert row["tokens_per_s"] == pytest.approx(1000 * 2 * 3 / row["times"]["total_ms"]["median"])
    assert unpruned["times"]["select_ms"]["median"] == 0
    assert unpruned["speedup"]["prefill_ms"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert unpruned["ideal"]["prefill"] == 1
    for row in pruned:
        assert row["times"]["select_ms"]["median"] > 0
        assert row["ideal"]["prefill"] == unpruned["flops"]["prefill"] / row["flops"]["prefill"] > 1
        assert (row["ideal"]["first_token"] > row["ideal_with_method"]) == (row["method"] == "vitcop")
        for name in ("prefill", "first_token"):
            measured = row["speedup"][f"{name}_ms"]["median"]
            assert row["achieved_of_ideal"][name] == measured / row["ideal"][name]


def test_the_report_can_be_repeated_from_itself(found: dict) -> None:
    run_, environment = found["run"], found["environment"]
    assert run_["seed"] == 0
    assert run_["command"] == "here"
    assert environment["torch"] == torch.__version__
    assert environment["dtype"] == "float32"
    assert environment["attention"] == "sdpa"
    assert set(measure.TIMES) <= set(found["definitions"])
    assert json.loads(json.dumps(found)) == found


def test_the_streamer_sees_the_prompt_and_every_token(tiny: Tiny) -> None:
    inputs = tiny.batch([[3, (4, 4), 5]] * 2)
    times, trace = measure.timed_call(tiny.model, inputs, make("random", keep=0.5), new_tokens=5)
    assert times["first_token_ms"] < times["total_ms"]
    assert trace.rows == 2
    times, _ = measure.timed_call(tiny.model, inputs, None, new_tokens=1)
    assert times["decode_ms"] == 0


def test_settings_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = make_tiny("llava")
    seen = []
    original = measure.timed_call

    def noted(model, inputs, method, new_tokens):
        seen.append("unpruned" if method is None else method.name)
        return original(model, inputs, method, new_tokens)

    monkeypatch.setattr(measure, "timed_call", noted)
    measure.measure(tiny.model, tiny.batch([[3, (4, 4), 5]]), grid(["random"], [0.5]), 2, repeats=2, warmup=1)
    assert seen == ["unpruned", "random", "unpruned", "random", "random", "unpruned"]


def test_a_fresh_process_weighs_what_it_allocates(job: Job) -> None:
    """A prompt with many more tokens needs measurably more; its parent's memory does not count."""
    weight = torch.ones(2_000_000_000 // 4)  # 2 GB in this process
    small, large = (
        memory.process_peaks(Job(**{**job.__dict__, "tokens": tokens}), [Setting("unpruned")])[0]
        for tokens in (SMALL, 400)
    )
    assert small + 20e6 < large < 2e9
    assert weight.numel()


def test_a_failing_process_is_reported(job: Job) -> None:
    broken = Job(**{**job.__dict__, "tokens": 577})
    with pytest.raises(memory.MeasurementError, match=r"'unpruned'.*577 visual tokens.*--no-memory"):
        memory.process_peaks(broken, [Setting("unpruned")])


def test_files(found: dict, tmp_path: Path) -> None:
    report.write_json(found, tmp_path / "deep" / "b.json")
    assert json.loads((tmp_path / "deep" / "b.json").read_text()) == found
    report.write_csv(found, tmp_path / "b.csv")
    rows = list(csv.DictReader((tmp_path / "b.csv").open()))
    assert float(rows[1]["kv_bytes"]) == found["results"][1]["kv_bytes"]
    assert len(rows) == 3
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_plot_is_drawn(found: dict, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    from foveate.bench.plot import figure, save

    drawn = figure(found)
    labels = drawn.axes[0].get_legend_handles_labels()[1]
    assert set(labels) == {"unpruned", "vitcop", "random"}
    save(found, tmp_path / f"b.{suffix}")
    assert (tmp_path / f"b.{suffix}").stat().st_size > 10_000


def test_the_command(tmp_path: Path) -> None:
    arguments = ["bench", "--model", "mid-llava", "--tokens", "16", "--method", "random", "--keep", "1/4"]
    options = [
        "--repeats",
        "1",
        "--warmup",
        "0",
        "--new-tokens",
        "2",
        "--no-memory",
        "--json",
        str(tmp_path / "b.json"),
    ]
    result = CliRunner().invoke(app, arguments + options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert result.output.index("What a user waits for") < result.output.index("Where the time goes")
    assert result.output.count("random 1/4") == len(TABLES)
    assert max(len(line) for line in result.output.splitlines()[2:]) <= 80
    assert json.loads((tmp_path / "b.json").read_text())["run"]["tokens"] == 16


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "mid-llava", "--image", "x.png"], "no tokenizer"),
        (["--image", "x.png", "--tokens", "16"], "not more than one"),
        (["--image", "missing.png"], "no image file"),
        (["--model", "mid-llava", "--dtype", "int8"], "dtype 'int8'"),
        (["--model", "no/such-model"], "Cannot load"),
    ],
)
def test_the_command_says_what_is_wrong(options: list[str], words: str) -> None:
    with pytest.raises(foveate.errors.FoveateError, match=words):
        CliRunner().invoke(app, ["bench", "--no-memory", *options], catch_exceptions=False)


def test_a_real_image_and_question() -> None:
    from foveate.scenes import load

    sample = load("test", 1)[0]
    model, processor = foveate.load("foveate/scenes-qwen2_5_vl")
    inputs = build_batch(model, processor, [([sample.image], sample.question)] * 2)
    assert inputs["input_ids"].shape[0] == 2
    assert (inputs["input_ids"][0] == inputs["input_ids"][1]).all()


def test_prepare_reads_an_image(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (112, 112), "red").save(tmp_path / "red.png")
    job = Job("foveate/scenes-qwen2_5_vl", None, str(tmp_path / "red.png"), "Which colour?", 1, 2, "auto", None, 0, 1)
    subject = prepare(job)
    assert "112 x 112" in subject.prompt
    assert (subject.inputs["input_ids"] == subject.model.config.image_token_id).sum() == 16


def test_peak_memory_is_drawn_where_it_was_measured(found: dict) -> None:
    pytest.importorskip("matplotlib")
    from foveate.bench.plot import figure

    weighed = found | {"results": [row | {"peak_bytes": 5_000_000} for row in found["results"]]}
    assert len(figure(found).axes) == 3
    assert list(figure(weighed).axes[3].lines[0].get_ydata()) == [5.0, 5.0]
