"""Reinforcement learning on pruned inputs: the trainer, killing and resuming it, merging, the whole schedule."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import foveate
from foveate.engine import seams
from foveate.errors import ConfigurationError, DataError, FoveateError
from foveate.training.base import ADAPTER
from foveate.training.plus import run as plus
from foveate.training.plus.judge import JudgeError
from foveate.training.plus.rewards import Rewards
from foveate.training.plus.sharing import Shared
from tests.engine.test_gradients import checkpointed_calls
from tests.golden_files import golden_tensors

from . import rl_losses
from .plus import QUICK, length_reward, trainer_of


@pytest.mark.parametrize("checkpointing", [True, False])
def test_log_probabilities_are_computed_on_what_the_rollout_kept(run: plus.PlusSettings, checkpointing: bool) -> None:
    arguments = {**QUICK, "max_steps": 1, "gradient_checkpointing": checkpointing}
    trainer = trainer_of(dataclasses.replace(run, arguments=arguments), length_reward)
    calls: list[tuple[str, bool, list[int]]] = []
    stock = foveate.engine.forward.ForwardPass.finish

    def watched(self: Any) -> None:
        stock(self)
        kept = [len(group.alive) for group in self.layout.groups]
        calls.append((type(self.method).__name__, torch.is_grad_enabled(), kept))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foveate.engine.forward.ForwardPass, "finish", watched)
        before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        trainer.train()
    prefills = [call for call in calls if call[2]]
    assert [name for name, _, _ in prefills] == ["EvidenceBoxes", "Replay", "Replay"] * 2  # rollout, reference, policy
    assert [grad for _, grad, _ in prefills] == [False, False, True] * 2
    for start in (0, 3):
        rollout, reference, policy = (kept for _, _, kept in prefills[start : start + 3])
        assert set(rollout) == set(reference) == set(policy)  # of a group, perhaps read once for all
        assert max(rollout) < 20, "nothing was pruned"
    moved = [n for n, p in trainer.model.named_parameters() if p.requires_grad and not torch.equal(p, before[n])]
    assert moved, "nothing was trained"
    assert all("lora" in name and "language_model" in name for name in before)


def test_without_pruning_the_trainer_is_trls(run: plus.PlusSettings) -> None:
    """The comparison of costs: the same trainer, nothing pruned."""
    trainer = trainer_of(dataclasses.replace(run, prune="none", arguments={**QUICK, "max_steps": 1}), length_reward)
    trainer.train()
    assert trainer.state.log_history[0]["kept_share"] == 1.0


class _Stub(nn.Module):
    """Returns the log-probabilities of a fixture."""

    def __init__(self, logps: Tensor) -> None:
        super().__init__()
        self.logps = nn.Parameter(logps)


@pytest.mark.parametrize("case", ["one_reward", "two_rewards", "all_equal"])
def test_loss_equals_the_published_one(run: plus.PlusSettings, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's loss with our settings is the sum of the official policy and KL terms, gradients included."""
    golden = golden_tensors("gp_losses/rl_losses.safetensors")
    count = sum(key.startswith(f"{case}/logps.") for key in golden)
    rows = [golden[f"{case}/logps.{i}"] for i in range(count)]
    refs = [golden[f"{case}/ref_logps.{i}"] for i in range(count)]
    pad = torch.nn.utils.rnn.pad_sequence
    stub = _Stub(pad(rows, batch_first=True))
    mask = pad([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
    trainer = trainer_of(dataclasses.replace(run, arguments={**QUICK, "gradient_accumulation_steps": 1}))
    trainer.current_gradient_accumulation_steps = 1
    monkeypatch.setattr(
        type(trainer), "_get_per_token_logps_and_entropies", lambda *a, **k: (stub.logps, torch.zeros_like(mask), None)
    )
    ids = torch.zeros_like(mask)
    advantages = rl_losses.group_advantages(golden[f"{case}/scores"])
    torch.testing.assert_close(advantages, golden[f"{case}/advantages"], atol=1e-6, rtol=0)
    inputs = {
        "prompt_ids": ids[:, :1], "prompt_mask": mask[:, :1], "completion_ids": ids, "completion_mask": mask,
        "advantages": advantages, "ref_per_token_logps": pad(refs, batch_first=True),
        "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    loss = trainer._compute_loss(stub, inputs)
    loss.backward()
    expected = golden[f"{case}/reward_loss"][0] + golden[f"{case}/kd_loss"][0]
    torch.testing.assert_close(loss.detach(), expected, atol=1e-6, rtol=0)
    for i, row in enumerate(rows):
        wanted = golden[f"{case}/grad_reward.{i}"] + golden[f"{case}/grad_kd.{i}"]
        assert stub.logps.grad is not None
        torch.testing.assert_close(stub.logps.grad[i, : len(row)], wanted, atol=1e-6, rtol=1e-4)


def test_group_advantages_are_trls(run: plus.PlusSettings) -> None:
    """The same rewards give TRL's trainer the published advantages."""
    rewards = torch.tensor([1.0, 0.0, 0.6, 0.9])
    trainer = trainer_of(
        dataclasses.replace(run, arguments={**QUICK, "beta": 0.0, "gradient_accumulation_steps": 1}),
        lambda completions, **_: rewards[: len(completions)].tolist(),
    )
    trainer.model.train()
    batch = trainer._generate_and_score_completions([trainer.train_dataset[0]] * 4)
    torch.testing.assert_close(batch["advantages"], rl_losses.group_advantages(rewards[None]), atol=1e-5, rtol=0)
    assert len(batch["choices"]) == 4


def test_a_threshold_learns_from_each_step_alone(run: plus.PlusSettings, module: Path) -> None:
    """Its gradient must not pile up: after a step nothing is left of it."""
    settings = dataclasses.replace(
        run, module=str(module), layer=None, prune="glimpse", learn_threshold=True, rewards=BOTH
    )
    trainer = trainer_of(settings, Rewards(BOTH))
    trainer.train()
    assert trainer.policy.mean.grad is None
    for values in ({"num_iterations": 2}, {"steps_per_generation": 4}):
        with pytest.raises(ConfigurationError, match="fresh rollouts"):
            trainer_of(dataclasses.replace(settings, arguments={**QUICK, **values}))
    with pytest.raises(ConfigurationError, match="module prunes after layer"):
        trainer_of(dataclasses.replace(settings, layer=3))


@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_that_checkpoint_their_call_train_alike(
    run: plus.PlusSettings, reentrant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older transformers run hooks again in the backward pass, which TRL starts after the forward pass is over."""
    found, repeated = [], []
    stock = seams.apply_again
    monkeypatch.setattr(seams, "apply_again", lambda *args: repeated.append(stock(*args)) or repeated[-1])
    monkeypatch.setattr(Shared, "of", lambda *_: None)  # prompts read once would draw other dropout
    for older in (False, True):
        values = {**QUICK, "max_steps": 1, "gradient_checkpointing": False}
        trainer = trainer_of(dataclasses.replace(run, arguments=values), length_reward)
        with checkpointed_calls(trainer.base, reentrant) if older else nullcontext():
            trainer.train()
        found.append({n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad})
    assert any(again is not None for again in repeated), "no layer was run again"
    assert all(value.abs().max() > 0 for name, value in found[0].items() if "lora_B" in name), "nothing was trained"
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-5, rtol=1e-3)


def test_the_threshold_is_trained_saved_and_resumed(run: plus.PlusSettings, module: Path) -> None:
    learned = dataclasses.replace(
        run, module=str(module), layer=None, prune="glimpse", learn_threshold=True, rewards=BOTH
    )
    plus.train(learned)
    summary = json.loads((run.out / "training.json").read_text())
    saved = load_file(run.out / "threshold.safetensors")["mean"].sigmoid().item()
    assert summary["threshold"] == pytest.approx(saved)
    assert saved != 0.5
    assert {"kept_share", "threshold", "reward_pruning_rate"} <= summary["log"][0].keys()
    more = dataclasses.replace(learned, resume=True, arguments={**QUICK, "max_steps": 3})
    trainer = trainer_of(more)
    trainer._load_from_checkpoint(str(run.out / "checkpoint-2"))
    assert trainer.policy.threshold == pytest.approx(saved)
    plus.train(more)
    assert json.loads((run.out / "checkpoint-3" / "trainer_state.json").read_text())["global_step"] == 3


def test_a_judge_that_is_down_loses_nothing(run: plus.PlusSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def down_at_the_third(self: Any, completions: list[Any], **_: Any) -> list[float]:
        asked.append(len(completions))
        if len(asked) == 3:
            raise JudgeError("down")
        return [1.0] * len(completions)

    monkeypatch.setattr(Rewards, "__call__", down_at_the_third)
    settings = dataclasses.replace(run, arguments={**QUICK, "save_steps": 100})
    with pytest.raises(JudgeError):
        plus.train(settings)
    assert (run.out / "checkpoint-1" / ADAPTER).is_file()
    plus.train(dataclasses.replace(settings, resume=True))
    assert (run.out / "training.json").is_file()


BOTH = {"pruning_rate": 1.0, "anls": 1.0}
CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"lora": None}, "beta=0.04 without PEFT"),
    ({"learn_threshold": True, "rewards": BOTH}, "needs --prune glimpse"),
    ({"learn_threshold": True}, "a reward for the task and one for pruning"),
    ({"judge": {"model": "m", "base_url": "http://x/v1"}}, "no weight for the reward `judge`"),
    ({"judge": {"modle": "m"}, "rewards": {"judge": 1.0}}, "judge: .*modle"),
    ({"lora": {"rank": 3}}, "lora: .*rank"),
    ({"arguments": {"use_vllm": True}}, "unpruned prompts"),
    ({"arguments": {"eval_strategy": "steps"}}, "--eval-data"),
    ({"patience": 2}, "--eval-data"),
    ({"prune": "glimpse"}, "give --module"),
    ({"layer": 9}, "layers 0..3"),
    ({"arguments": {"beata": 1}}, "no field beata"),
    ({"module": "/nowhere"}, "/nowhere"),
]


@pytest.mark.parametrize(("changes", "message"), CHANGES, ids=[str(c) for c, _ in CHANGES])
def test_what_cannot_work_is_refused(run: plus.PlusSettings, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FoveateError, match=message):
        plus.train(dataclasses.replace(run, **changes))


def test_arguments_of_every_kind(run: plus.PlusSettings) -> None:
    given = {"generation_batch_size": 16, "reward_weights": [1.0], "hub_model_id": None, "adam_beta1": "0.8"}
    arguments = plus.grpo_arguments(dataclasses.replace(run, arguments={**QUICK, **given}))
    assert (arguments.generation_batch_size, arguments.steps_per_generation) == (16, 4)
    assert (arguments.reward_weights, arguments.hub_model_id, arguments.adam_beta1) == ([1.0], None, 0.8)


def test_all_of_the_language_model_without_kl(run: plus.PlusSettings) -> None:
    plus.train(dataclasses.replace(run, lora=None, arguments={**QUICK, "beta": 0.0, "max_steps": 1}))
    assert (run.out / "model.safetensors").is_file()


def write_rows(path: Path, data: Path, **changes: Any) -> Path:
    rows = [json.loads(line) | {"image": str(data.parent / f"{i}.png")} for i, line in enumerate(data.open())]
    rows[3] |= changes
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_placeholder_in_a_question_is_a_bad_row(run: plus.PlusSettings, data: Path, tmp_path: Path) -> None:
    marked = write_rows(tmp_path / "a.jsonl", data, question="<|image_pad|> Where?")
    with pytest.raises(DataError, match=r"row 4: the question holds <\|image_pad\|>"):
        plus.train(dataclasses.replace(run, data=str(marked)))
    plus.train(dataclasses.replace(run, data=str(marked), skip_bad=True))
    summary = json.loads((run.out / "training.json").read_text())
    assert (summary["rows"], summary["rows_skipped"]) == (9, 1)


def test_a_row_without_answer_or_boxes(run: plus.PlusSettings, data: Path, tmp_path: Path, module: Path) -> None:
    unanswered = dataclasses.replace(run, data=str(write_rows(tmp_path / "a.jsonl", data, answer=None)))
    with pytest.raises(DataError, match="row 4: the answer is empty"):
        plus.train(unanswered)
    plus.train(dataclasses.replace(unanswered, skip_bad=True))
    assert json.loads((run.out / "training.json").read_text())["rows_skipped"] == 1
    unboxed = dataclasses.replace(
        run, data=str(write_rows(tmp_path / "b.jsonl", data, boxes=None)), out=tmp_path / "other"
    )
    with pytest.raises(DataError, match="row 4: no evidence boxes"):
        plus.train(unboxed)
    plus.train(dataclasses.replace(unboxed, module=str(module), layer=None))  # the module decides such rows
