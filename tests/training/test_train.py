"""Whole training runs on a tiny random model: results, resuming after a kill, refusals, the command line."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Qwen2VLImageProcessorPil

from foveate.errors import CheckpointError, ConfigurationError, DataError
from foveate.glimpse import GlimpseModule
from foveate.training.checkpoints import last_checkpoint
from foveate.training.glimpse.run import GlimpseSettings, train, training_arguments

from .runs import DISTILL, FAST, command


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_boxes_are_learned(settings: GlimpseSettings) -> None:
    arguments = FAST | {"max_steps": 40, "save_steps": 20, "learning_rate": 0.02}
    run = replace(settings, arguments=arguments, eval_data=settings.data)
    metrics = train(run)
    summary = json.loads((run.out / "training.json").read_text())
    history = json.loads((last_checkpoint(run.out) / "trainer_state.json").read_text())["log_history"]
    evaluations = [entry for entry in history if "eval_loc_loss" in entry]
    losses = [entry["loc_loss"] for entry in history if "loc_loss" in entry]
    assert len(evaluations) == 2
    assert losses[-1] < losses[0]
    assert 0 <= metrics["eval_kept"] <= 1
    assert 0 <= metrics["eval_recall"] <= 1
    assert 0 <= metrics["eval_accuracy"] <= 1
    assert "eval_accuracy_unpruned" in metrics
    assert summary["rows"] == 10
    assert summary["metrics"]["eval_kept"] == metrics["eval_kept"]
    module = GlimpseModule.from_pretrained(run.out)
    assert module.config.base_model == run.model
    stored = {p.name for p in last_checkpoint(run.out).iterdir()}
    assert "training_args.bin" not in stored
    assert sum(p.stat().st_size for p in run.out.glob("*.safetensors")) < 2_000_000


def test_distillation_learns_without_labels(settings: GlimpseSettings, tmp_path: Path) -> None:
    """Answers come from the base model and are asked for once; the price of tokens is felt."""
    source = Path(settings.data)
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    bare = source.with_name("bare.jsonl")
    bare.write_text("".join(json.dumps({k: r[k] for k in ("image", "question")}) + "\n" for r in rows))
    arguments = FAST | {"max_steps": 30, "learning_rate": 0.02}
    run = replace(settings, data=str(bare), objective=DISTILL, arguments=arguments)
    train(run)
    history = json.loads((last_checkpoint(run.out) / "trainer_state.json").read_text())["log_history"]
    keep = [entry["keep_loss"] for entry in history if "keep_loss" in entry]
    assert keep[-1] < keep[0] / 2
    (part,) = (run.out / "answers").glob("part-*.parquet")
    asked = pq.read_table(part)
    assert asked["row"].to_pylist() == list(range(1, len(rows) + 1))
    # What has been asked is not asked again; a file that a kill cut off was never there.
    changed = asked.set_column(asked.schema.get_field_index("answer"), "answer", [["seven"] * len(rows)])
    pq.write_table(changed.cast(asked.schema), part)
    part.with_name(f".{part.name}.partial").write_bytes(b"PAR1")
    train(replace(run, resume=True, arguments=arguments | {"max_steps": 31}))
    assert pq.read_table(part)["answer"].to_pylist() == ["seven"] * len(rows)
    assert not list(part.parent.glob(".*.partial"))


PROGRAM = "import typer; from foveate.cli.train_glimpse import glimpse; typer.run(glimpse)"
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


DYING = """
import os, signal
from transformers import Trainer
step = Trainer.training_step
def dying(self, *given, **named):
    if self.state.global_step == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *given, **named)
Trainer.training_step = dying
"""
"""Kills its own process in the middle of a step, so that no clock decides when."""


def test_killed_and_resumed_run_gives_the_same_weights(settings: GlimpseSettings, tmp_path: Path) -> None:
    arguments = FAST | {"max_steps": 10, "save_steps": 4, "save_total_limit": 3}
    whole = replace(settings, out=tmp_path / "whole", arguments=arguments)
    train(whole)
    killed = replace(settings, out=tmp_path / "killed", arguments=arguments)
    program = [sys.executable, "-c", DYING + PROGRAM, *command(killed)]
    done = subprocess.run(program, env=ENVIRONMENT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    reached = last_checkpoint(killed.out)
    assert reached.name == "checkpoint-4"
    start = weights(reached)
    with pytest.raises(ConfigurationError, match="--resume"):
        train(killed)
    train(replace(killed, resume=True))
    expected, actual = weights(whole.out), weights(killed.out)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert any(not torch.equal(start[name], actual[name]) for name in actual), "nothing happened after the kill"


def test_unfinished_checkpoints_are_passed_over(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for step, state in ((2, "{}"), (10, "{}"), (12, '{"log'), (14, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"")
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path).name == "checkpoint-10"


def test_resume_without_a_checkpoint_starts_fresh(settings: GlimpseSettings) -> None:
    train(replace(settings, resume=True, arguments=FAST | {"max_steps": 1}))
    assert (settings.out / "config.json").exists()


def test_start_from_a_module(settings: GlimpseSettings, tmp_path: Path) -> None:
    one = FAST | {"max_steps": 1}
    train(replace(settings, arguments=one, module={"le_length": 2, "threshold": 0.3}))
    further = replace(settings, out=tmp_path / "further", start=str(settings.out), arguments=one)
    train(further)
    config = GlimpseModule.from_pretrained(further.out).config
    assert (config.le_length, config.threshold) == (2, 0.3)
    with pytest.raises(ConfigurationError, match="only one of both"):
        train(replace(further, out=tmp_path / "third", module={"le_length": 1}))


def test_bad_data_stops_before_the_models_are_loaded(settings: GlimpseSettings, tmp_path: Path) -> None:
    source = Path(settings.data)
    lines = source.read_text().splitlines()
    lines[3] = json.dumps(json.loads(lines[3]) | {"boxes": [[0, 0, 999, 10]]})
    bad = source.with_name("bad.jsonl")
    bad.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"row 4: .*outside"):
        train(replace(settings, data=str(bad), model="no/such/model"))
    train(replace(settings, data=str(bad), skip_bad=True, arguments=FAST | {"max_steps": 1}))
    summary = json.loads((settings.out / "training.json").read_text())
    assert (summary["rows"], summary["rows_skipped"]) == (9, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"question": "<|image_pad|> Where?"}, r"the question holds <\|image_pad\|>"),
        ({"answer": "<|video_pad|>"}, r"the answer holds <\|video_pad\|>"),
        (
            {"image": "wide.png", "boxes": []},
            "image 1 of 1500 x 10 pixels is refused by the model's processor: .*ratio",
        ),
    ],
)
def test_rows_that_the_model_cannot_read_are_bad_rows(
    settings: GlimpseSettings, monkeypatch: pytest.MonkeyPatch, change: dict, words: str
) -> None:
    """Only the loaded processor knows them; still they stop the run before its first step."""
    source = Path(settings.data)
    Image.new("RGB", (1500, 10)).save(source.with_name("wide.png"))
    stock = Qwen2VLImageProcessorPil.__call__

    def strict(self: object, images: list, **options: object) -> object:
        flat = [one for image in images for one in (image if isinstance(image, list) else [image])]
        if any(image.width > 100 * image.height for image in flat):
            raise ValueError("absolute aspect ratio must be smaller than 100")
        return stock(self, images, **options)

    monkeypatch.setattr(Qwen2VLImageProcessorPil, "__call__", strict)
    lines = source.read_text().splitlines()
    lines[3] = json.dumps(json.loads(lines[3]) | change)
    bad = source.with_name("bad.jsonl")
    bad.write_text("\n".join(lines) + "\n")
    for data in ({"data": str(bad)}, {"eval_data": str(bad)}):
        with pytest.raises(DataError, match=rf"(?s)1 of 10 rows.*row 4: .*{words}"):
            train(replace(settings, **data))
    train(replace(settings, data=str(bad), skip_bad=True, arguments=FAST | {"max_steps": 5}))
    summary = json.loads((settings.out / "training.json").read_text())
    assert (summary["rows"], summary["rows_skipped"]) == (9, 1)


def test_refusals(settings: GlimpseSettings) -> None:
    with pytest.raises(ConfigurationError, match="learning_rat"):
        training_arguments(replace(settings, arguments={"learning_rat": 1}))
    with pytest.raises(ConfigurationError, match="training arguments"):
        training_arguments(replace(settings, arguments={"learning_rate": "fast"}))
    with pytest.raises(CheckpointError, match="no/such/model"):
        train(replace(settings, model="no/such/model"))


def test_published_settings_are_the_defaults(settings: GlimpseSettings) -> None:
    arguments = training_arguments(replace(settings, arguments={"use_cpu": True}))
    assert arguments.learning_rate == 1e-4
    assert str(arguments.lr_scheduler_type.value) == "cosine"
    assert arguments.get_warmup_steps(1000) == 100
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (1, 8)
    assert arguments.num_train_epochs == 1


def test_gradient_checkpointing_and_accumulation_pass_through(settings: GlimpseSettings, tmp_path: Path) -> None:
    plain = replace(settings, arguments=FAST | {"max_steps": 2}, module={"le_dropout": 0.0})
    train(plain)
    saved = replace(plain, out=tmp_path / "saved", arguments=plain.arguments | {"gradient_checkpointing": "true"})
    train(saved)
    a, b = weights(plain.out), weights(saved.out)
    assert all(torch.allclose(a[name], b[name], atol=1e-5) for name in a)
