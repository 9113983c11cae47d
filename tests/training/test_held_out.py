"""Held-out data decide which checkpoint is taken and when a run stops; every run leaves its picture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from foveate.errors import CheckpointError, ConfigurationError
from foveate.training.arguments import parse_arguments
from foveate.training.base import load_base
from foveate.training.curves import draw
from foveate.training.glimpse.objectives import gates
from foveate.training.glimpse.run import GlimpseSettings, train
from foveate.training.glimpse.trainer import GlimpseTrainer
from foveate.training.runs import batch_line

from .runs import FAST


def test_the_best_checkpoint_is_taken_and_the_run_stops(
    settings: GlimpseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluations get worse from the second on, whatever the module does."""
    stock, losses = GlimpseTrainer.evaluation_loop, iter((0.5, 0.25, 0.75, 1.0, 1.25))

    def worse(self: Any, *given: Any, **named: Any) -> Any:
        output = stock(self, *given, **named)
        output.metrics["eval_loss"] = next(losses)
        return output

    monkeypatch.setattr(GlimpseTrainer, "evaluation_loop", worse)
    run = replace(settings, eval_data=settings.data, eval_limit=2, patience=2, arguments=FAST | {"max_steps": 10})
    metrics = train(run)
    assert metrics["eval_loss"] == 0.25
    best, result = load_file(run.out / "checkpoint-4/model.safetensors"), load_file(run.out / "model.safetensors")
    last = load_file(run.out / "checkpoint-8/model.safetensors")
    assert all(torch.equal(result[name], best[name]) for name in best)
    assert not all(torch.equal(result[name], last[name]) for name in best)
    assert not (run.out / "checkpoint-10").exists()
    with Image.open(run.out / "curves.png") as picture:
        assert len(picture.getcolors(1 << 24) or []) > 5


def test_patience_needs_something_to_wait_for(settings: GlimpseSettings) -> None:
    with pytest.raises(ConfigurationError, match="--eval-data"):
        train(replace(settings, patience=1))
    with pytest.raises(ConfigurationError, match="multiple"):
        train(replace(settings, patience=1, eval_data=settings.data, arguments=FAST | {"eval_steps": 3}))


def test_curves_show_what_was_logged(tmp_path: Path) -> None:
    blank, full = tmp_path / "blank.png", tmp_path / "full.png"
    log = [
        {"step": step, "loss": 1 / step, "eval_kept": 0.2, "eval_kept_low": 0.1, "eval_kept_high": 0.3}
        for step in (1, 2)
    ]
    draw(log[:1], blank)
    draw([*log, {"step": 3, "reward": 0.5, "kl": 0.1}], full)
    with Image.open(blank) as one, Image.open(full) as two:
        assert two.height > one.height


def test_gates_are_drawn_as_often_as_their_logits_say() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([-3.0, 0.0, 2.0]).repeat_interleave(20_000)
    drawn = gates(logits, 0.67, drawn=True).exp().view(3, -1)
    torch.testing.assert_close(
        (drawn > 0.5).float().mean(1), torch.tensor([-3.0, 0.0, 2.0]).sigmoid(), atol=0.02, rtol=0
    )
    assert ((drawn < 0.2) | (drawn > 0.8)).float().mean() > 0.6
    still = gates(logits[:1], 0.67, drawn=False)
    assert torch.equal(still, gates(logits[:1], 0.67, drawn=False))
    torch.testing.assert_close(gates(logits, 0.0, drawn=True), logits.sigmoid().log())


def test_the_global_batch_is_told(settings: GlimpseSettings) -> None:
    from transformers import TrainingArguments

    given = {"output_dir": "x", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    told = batch_line(parse_arguments(TrainingArguments, given), 1234, "more")
    assert told.startswith(
        "1,234 rows; global batch 8 (2 x 4 accumulated x 1 process), learning rate 5e-05 (published: more)"
    )


def test_an_adapter_folder_is_a_base(settings: GlimpseSettings, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model, _ = load_base(settings)
    stock = {name: value.clone() for name, value in model.state_dict().items()}
    adapter = tmp_path / "adapter"
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False))
    wrapped.peft_config["default"].base_model_name_or_path = settings.model
    wrapped.save_pretrained(adapter)
    expected = wrapped.merge_and_unload().state_dict()
    found = load_base(replace(settings, model=str(adapter)))[0].state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert any(not torch.equal(found[name], stock[name]) for name in found)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({}))
    with pytest.raises(CheckpointError, match="which model"):
        load_base(replace(settings, model=str(adapter)))
