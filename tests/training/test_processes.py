"""Several processes, and several micro-batches, train as one does with the same global batch."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from foveate.errors import ConfigurationError
from foveate.families import adapt
from foveate.inference.answer import Asker
from foveate.training.base import load_merged
from foveate.training.checkpoints import last_checkpoint
from foveate.training.glimpse import run as runs
from foveate.training.glimpse.answers import fill_answers
from foveate.training.glimpse.objectives import Objective
from foveate.training.glimpse.run import GlimpseSettings, train, training_arguments
from foveate.training.glimpse.trainer import GlimpseTrainer
from foveate.training.plus.run import PlusSettings, grpo_arguments
from foveate.training.processes import world

from .processes import FailedProcessError, forked
from .runs import DISTILL, FAST, command

ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
PROGRAM = "import typer; from foveate.cli.train_glimpse import glimpse; typer.run(glimpse)"
STEPS = FAST | {"max_steps": 2, "save_steps": 2, "logging_steps": 1}
WITHOUT = {"le_dropout": 0.0}
EVALUATED = ("eval_kept", "eval_recall", "eval_accuracy", "eval_accuracy_unpruned")
BOTH = Objective(distillation=1.0, gate_temperature=0.0)  # nothing is drawn


def uneven(settings: GlimpseSettings) -> str:
    """Eight rows whose answers differ in length, so that means over tokens are no means over rows."""
    source = Path(settings.data)
    rows = [json.loads(line) for line in source.read_text().splitlines()][:8]
    path = source.with_name("uneven.jsonl")
    path.write_text(
        "".join(json.dumps(row | {"answer": "one " * (i % 4 * 3 + 1)}) + "\n" for i, row in enumerate(rows))
    )
    return str(path)


def launched(run: GlimpseSettings, tmp_path: Path, *more: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    given = [*launch, str(program), *command(run), *more]
    done = subprocess.run(given, env=ENVIRONMENT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def logged(folder: Path) -> list[dict[str, Any]]:
    history = json.loads((last_checkpoint(folder) / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loc_loss" in entry]


def agree(one: Path, other: Path) -> None:
    """Weights after two steps, and everything that was logged on the way."""
    expected, actual = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, atol=2e-5, rtol=1e-4, msg=name)
    for ours, theirs in zip(logged(one), logged(other), strict=True):
        names = ("loss", "le_loss", "loc_loss", "dice_loss", "kl_loss", "keep_loss", "kept", "recall", "grad_norm")
        for name in names:
            assert theirs[name] == pytest.approx(ours[name], rel=1e-3, abs=2e-5), name


def test_micro_batches_do_not_matter(settings: GlimpseSettings, tmp_path: Path) -> None:
    run = replace(settings, data=uneven(settings), module=WITHOUT, objective=BOTH)
    sizes = ((4, 1), (2, 2), (1, 4))
    for size, steps in sizes:
        arguments = STEPS | {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        train(replace(run, out=tmp_path / str(size), arguments=arguments | {"optim": "sgd"}))
    for size, _ in sizes[1:]:
        agree(tmp_path / "4", tmp_path / str(size))


@pytest.mark.slow
def test_two_processes_train_as_one(settings: GlimpseSettings, tmp_path: Path) -> None:
    """Started by a launcher on a CPU, without being told that it is one."""
    arguments = {name: value for name, value in STEPS.items() if name != "use_cpu"} | {"optim": "sgd"}
    run = replace(settings, data=uneven(settings), module=WITHOUT, objective=BOTH)
    alone = replace(run, out=tmp_path / "alone", arguments=arguments | {"per_device_train_batch_size": 4})
    train(alone)
    two = replace(run, out=tmp_path / "two", arguments=arguments)
    launched(two, tmp_path, "--objective", "both", "--module", "le_dropout=0.0", "--loss", "gate_temperature=0")
    assert json.loads((two.out / "training.json").read_text())["processes"] == 2
    agree(alone.out, two.out)


def succeeded(results: list[Any]) -> list[Any]:
    assert not [str(result) for result in results if isinstance(result, FailedProcessError)]
    return results


def unlabelled(settings: GlimpseSettings, labelled: int = 0) -> GlimpseSettings:
    """A run by distillation on rows of which only the first few have answers."""
    source = Path(settings.data)
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    bare = [row if i < labelled else {k: row[k] for k in ("image", "question")} for i, row in enumerate(rows)]
    path = source.with_name(f"bare-{labelled}.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in bare))
    return replace(settings, data=str(path), objective=DISTILL, arguments=STEPS)


def answers(folder: Path) -> dict[int, tuple[str, int]]:
    """Of every row: what was answered, and when the file it stands in was written."""
    found = {}
    for path in folder.glob("answers/part-*.parquet"):
        for record in pq.read_table(path).to_pylist():
            found[record["row"]] = record["answer"], path.stat().st_mtime_ns
    return found


def texts(folder: Path) -> dict[int, str]:
    return {row: text for row, (text, _) in answers(folder).items()}


@pytest.mark.parametrize("labelled", [False, True])
def test_a_divided_base_trains_as_a_whole_one(settings: GlimpseSettings, tmp_path: Path, labelled: bool) -> None:
    """The base divided by FSDP2, from the answers on where there are none; files of uneven lengths."""
    run = replace(settings, data=uneven(settings), objective=BOTH, eval_data=settings.data, eval_limit=3)
    if not labelled:
        run = replace(unlabelled(settings), objective=replace(DISTILL, gate_temperature=0.0))
    run, arguments = replace(run, module=WITHOUT), STEPS | {"optim": "sgd"}
    whole = replace(run, out=tmp_path / "whole", arguments=arguments | {"per_device_train_batch_size": 4})
    expected = train(whole)
    again = {} if labelled else {"activation_checkpointing": True}
    divided = replace(run, out=tmp_path / "divided", arguments=arguments | again, shard=True)

    def work() -> tuple[float, dict[str, float]]:
        """Share of the decoder layers' weights that this process holds, and its metrics."""
        held = list[float]()

        class Watched(GlimpseTrainer):
            def __init__(self, model: Any, *args: Any, **named: Any) -> None:
                weights = list(adapt(model.base).parts.layers.parameters())
                held.append(sum(w.to_local().numel() for w in weights) / sum(w.numel() for w in weights))
                super().__init__(model, *args, **named)

        runs.GlimpseTrainer, runs.fill_answers = Watched, partial(fill_answers, part=3, batch=2)
        metrics = train(divided)
        return held[0], {name: value for name, value in metrics.items() if name in EVALUATED}

    results = succeeded(forked(work))
    assert sum(share for share, _ in results) == 1.0
    for _, metrics in results:
        assert metrics == pytest.approx({name: expected[name] for name in metrics}, rel=1e-3, abs=1e-5)
        assert len(metrics) == (len(EVALUATED) if labelled else 0)
    assert texts(whole.out) == texts(divided.out)
    assert len(texts(whole.out)) == (0 if labelled else 10)
    agree(whole.out, divided.out)
    assert {p.name for p in divided.out.glob("**/*.safetensors")} == {"model.safetensors"}
    assert sum(p.stat().st_size for p in divided.out.glob("**/*")) < 8_000_000, "the base was written"


def test_all_processes_ask_and_a_killed_run_goes_on(settings: GlimpseSettings, tmp_path: Path) -> None:
    """Three processes, ten questions, some of them answered before: fewer files than processes in the last round."""
    run = unlabelled(settings, labelled=1)
    dying, alone = replace(run, out=tmp_path / "dying"), replace(run, out=tmp_path / "alone")

    def work(last: int | None) -> Any:
        runs.fill_answers, asked = partial(fill_answers, part=2, batch=2), list[int]()
        answer = Asker.answer

        def counted(*given: Any, **named: Any) -> Any:
            asked.append(1)
            if len(asked) == last and world()[0] == 1:
                raise RuntimeError("a broken device")
            return answer(*given, **named)

        Asker.answer = counted  # type: ignore[method-assign]
        train(dying)
        return len(asked)

    failed = forked(partial(work, 2), count=3)
    assert "RuntimeError: a broken device" in str(failed[1])
    assert all("ProcessError: process 1 of 3 failed: RuntimeError" in str(failed[i]) for i in (0, 2))
    before = answers(dying.out)
    assert len(before) == 8, "two rows in each file but the last, which was not finished"
    assert sorted(succeeded(forked(partial(work, None), count=2))) == [0, 1]
    after = answers(dying.out)
    assert len(after) == 9
    assert all(after[row] == known for row, known in before.items()), "asked again"
    train(alone)
    assert {row: text for row, (text, _) in answers(alone.out).items()} == {
        row: text for row, (text, _) in after.items()
    }


def test_fewer_rows_than_processes(settings: GlimpseSettings) -> None:
    run = replace(settings, limit=1, eval_data=settings.data, eval_limit=1, arguments=STEPS)
    results = succeeded(forked(lambda: train(run)))
    assert results[0]["eval_loss"] == pytest.approx(results[1]["eval_loss"])
    assert json.loads((run.out / "training.json").read_text())["rows"] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_in_the_dtype_of_their_file_are_mapped(base: Path) -> None:
    """Then processes of a machine share them."""
    file = str(base / "model.safetensors")

    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count(file)

    gc.collect()
    before = mappings()  # of models of other tests
    converted, _ = load_merged(str(base), "bfloat16")
    assert mappings() <= before
    mapped, _ = load_merged(str(base), "float32")
    assert mappings() > before
    assert (next(converted.parameters()).dtype, next(mapped.parameters()).dtype) == (torch.bfloat16, torch.float32)


def test_a_process_with_other_files_is_refused(settings: GlimpseSettings, tmp_path: Path) -> None:
    """Also before it can leave others waiting."""
    other = tmp_path / "other.jsonl"
    other.write_text(Path(settings.data).read_text() + "\n")

    def work() -> None:
        train(settings if os.environ["RANK"] == "0" else replace(settings, data=str(other)))

    assert all("not the same file for all processes" in str(result) for result in forked(work))


def test_processes_that_would_train_apart_are_refused(
    settings: GlimpseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert training_arguments(replace(settings, arguments={})).use_cpu is not torch.accelerator.is_available()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match="2 processes"):
        training_arguments(replace(settings, arguments={"use_cpu": False}))


def test_other_ways_to_divide_a_model_are_refused(
    settings: GlimpseSettings, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be divided in one process"):
        train(replace(settings, shard=True))
    with pytest.raises(ConfigurationError, match="--full nothing is"):
        grpo_arguments(PlusSettings(str(base), str(data), tmp_path / "plus", lora=None, shard=True))
    if not torch.accelerator.is_available():
        with pytest.raises(ConfigurationError, match="on a CPU accelerate divides no model"):
            training_arguments(replace(settings, arguments={"fsdp": "full_shard"}))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigurationError, match="FSDP divides what learns.*--shard"):
        train(settings)
