"""A prompt that completions share is read once: the same choices, log-probabilities and gradients as row by row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate.glimpse import GlimpseModule, load_module
from foveate.training.plus import run as plus
from foveate.training.plus.sharing import Shared

from .plus import QUICK, length_reward, trainer_of

LORA: dict[str, Any] = {"lora_dropout": 0.0, "init_lora_weights": False}
"""Without dropout, which falls on other places where a prompt is read once; and not at zero."""

TOWER = r".*visual\.blocks.*\.(qkv|proj)|.*language_model.*\.(q_proj|v_proj)"
"""An adapter on the vision tower too."""


def rows_read(patch: pytest.MonkeyPatch) -> list[int]:
    """How many rows every prefill had."""
    rows: list[int] = []
    stock = foveate.engine.forward.ForwardPass.finish

    def watched(self: Any) -> None:
        stock(self)
        if self.layout.groups:
            rows.append(self.layout.rows)

    patch.setattr(foveate.engine.forward.ForwardPass, "finish", watched)
    return rows


def step(trainer: Any) -> tuple[dict[str, Any], Tensor, dict[str, Tensor]]:
    """Rollouts of two groups in one batch, their loss, its gradients."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    data = trainer.train_dataset
    torch.manual_seed(3)
    batch = trainer._generate_and_score_completions([data[0]] * 4 + [data[1]] * 4)
    batch["advantages"] = torch.linspace(-1, 1, 8)  # whatever the completions are worth
    with foveate.prune(trainer.base, None):
        loss = trainer._compute_loss(trainer.model, batch)
        loss.backward()
    return batch, loss, {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.fixture
def trainer(run: plus.PlusSettings) -> Callable[..., Any]:
    def make(**changes: Any) -> Any:
        values = {**QUICK, "gradient_checkpointing": False, "per_device_train_batch_size": 8, "beta": 0.5}
        lora = {**LORA, **changes.pop("lora", {})}
        settings = dataclasses.replace(run, **{"lora": lora, "arguments": values, **changes})
        torch.manual_seed(0)
        return trainer_of(settings, length_reward)

    return make


@pytest.fixture
def capped(module: Path, tmp_path: Path) -> str:
    """The module, which keeps a quarter at most."""
    found = load_module(str(module))
    other = GlimpseModule(dataclasses.replace(found.config, max_keep=0.25))
    other.load_state_dict(found.state_dict())
    other.save_pretrained(tmp_path / "capped")
    return str(tmp_path / "capped")


@pytest.mark.parametrize("kind", ["boxes", "glimpse", "none", "tower"])
def test_as_row_by_row(kind: str, trainer: Callable[..., Any], capped: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {"prune": "boxes" if kind == "tower" else kind}
    if kind == "glimpse":
        changes |= {"module": capped, "layer": None}
    if kind == "tower":
        changes["lora"] = {"target_modules": TOWER}
    read = rows_read(monkeypatch)
    batch, loss, gradients = step(trainer(**changes))
    assert read == [2, 2, 2], "rollouts, reference and policy read two prompts each"
    with monkeypatch.context() as patch:
        patch.setattr(Shared, "of", lambda *_: None)
        whole, expected, wanted = step(trainer(**changes))
    assert set(read[3:]) == {8}
    for name in ("completion_ids", "ref_per_token_logps"):
        torch.testing.assert_close(batch[name], whole[name], atol=1e-4, rtol=1e-4)
    if kind != "none":
        kept = [[row.kept for row in one["choices"]] for one in (batch, whole)]
        assert kept[0] == kept[1]
        assert max(kept[0]) < batch["choices"][0].total
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-4)
    assert gradients.keys() == wanted.keys()
    assert any("visual" in name for name in gradients) == (kind == "tower")
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, wanted[name], atol=1e-5, rtol=1e-3)


def test_log_probabilities_of_chunks(trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL may score a batch in chunks: each has groups of its own."""
    one = trainer()
    batch, _, _ = step(one)
    read = rows_read(monkeypatch)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    names = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
    given = {name: batch[name] for name in names if name in batch}
    with torch.no_grad(), foveate.prune(one.base, None):
        whole, chunks = (
            one._get_per_token_logps_and_entropies(
                one.model, ids, mask, batch["completion_ids"].shape[1], size, compute_entropy=True, **given
            )
            for size in (8, 2)
        )
    assert read == [2, 1, 1, 1, 1]
    torch.testing.assert_close(whole[0], chunks[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole[1], chunks[1], atol=1e-5, rtol=1e-4)


def test_not_where_layers_are_checkpointed_or_thresholds_differ(
    trainer: Callable[..., Any], capped: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = rows_read(monkeypatch)
    values = {**QUICK, "gradient_checkpointing": True, "per_device_train_batch_size": 8}
    step(trainer(arguments=values))
    assert read == [2, 8, 8], "rollouts do not train, so they share even then"
    read.clear()
    step(trainer(prune="glimpse", module=capped, layer=None, learn_threshold=True))
    assert read == [8, 8, 8]


def test_what_is_shared() -> None:
    pixels = torch.arange(12.0)[:, None]
    fields = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 1, 2], [1, 1, 3], [1, 1, 2], [1, 1, 5]])}
    shared = Shared.of("aba", [1, 1, 2], fields)
    assert shared is not None
    assert (shared.first, shared.owner) == ((0, 1), (0, 1, 0))
    own = shared.narrow({**fields, "input_ids": torch.arange(3)[:, None].expand(3, 2), "use_cache": True})
    assert own["pixel_values"].flatten().tolist() == [0, 1, 2, 3, 4]
    assert own["image_grid_thw"].shape == (2, 3)
    assert own["input_ids"][:, 0].tolist() == [0, 1]
    assert own["use_cache"] is True
    assert Shared.of("abc", [1, 1, 2], fields) is None, "nothing is shared"
    assert Shared.of("aba", [1, 1, 2], {"pixel_values": pixels}) is None, "whose pixels are these?"
    assert Shared.of("aba", [1, 1, 2], {**fields, "tiles": pixels}) is None, "a processor that is not known"
