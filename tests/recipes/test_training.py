from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import typer
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from foveate.errors import FoveateError
from recipes.zoo import checkpoint, config
from recipes.zoo.optim import MuonAdamW, cosine, share_gradients

ONE = {"size": [112, 112], "images": 2, "shapes": [1, 2], "panel_share": 0.0}
PAGE = ONE | {"size": [224, 224], "images": 1, "rows": [1, 2], "shows": "documents", "weight": 0.3}
FILM = ONE | {"images": 1, "shows": "videos", "frames": 4, "weight": 0.3}
TINY = {
    "name": "tiny",
    "family": "qwen2_5_vl",
    "processes": 1,
    "checkpoint_seconds": 0.0,
    "tower": {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "fullatt_block_indexes": [1],
    },
    "text": {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
    "vision": [
        {"steps": 12, "phases": [{"until": 1.0, "batches": [ONE | {"pages": 2}]}]},
        {"steps": 4, "phases": [{"until": 1.0, "batches": [ONE]}]},
    ],
    "language": {
        "steps": 40,
        "questions": 4,
        "attention_layer": 1,
        "attention_heads": [0],
        "reach_share": 0.5,
        "reach_layers": 1,
        "reach_windows": {"count": [1, 2]},
        "phases": [{"until": 1.0, "batches": [ONE, ONE | {"images_per_prompt": 2, "weight": 0.5}, PAGE, FILM]}],
    },
}
RUN = "import sys; from pathlib import Path; from recipes.zoo.train import train; train(sys.argv[1], Path(sys.argv[2]))"


def of_batches(kind: dict) -> dict:
    """What makes a recipe's stage L of one kind of batch."""
    return {"language": TINY["language"] | {"phases": [{"until": 1.0, "batches": [kind]}]}}


def start(recipe: Path, out: Path) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", RUN, str(recipe), str(out)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def steps_done(out: Path, stage: str) -> int:
    state = checkpoint.load(out / f"{stage}.pt")
    return state["step"] if state else 0


def test_a_killed_run_does_not_go_on_in_its_children(tmp_path):
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(TINY | {"processes": 2, "language": TINY["language"] | {"steps": 100_000}}))
    run = start(recipe, tmp_path / "out")
    while steps_done(tmp_path / "out", "vision1") < 1:
        assert run.poll() is None, run.communicate()[1]
        time.sleep(0.05)
    children = psutil.Process(run.pid).children(recursive=True)
    assert len([c for c in children if "spawn_main" in " ".join(c.cmdline())]) == 2
    run.send_signal(signal.SIGKILL)
    run.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


def further(trained: Path) -> dict:
    """Goes on from trained weights with a stage V for the heads alone and nothing after it."""
    vision = TINY["vision"][1] | {"steps": 2, "tower_rate": 0.0}
    return TINY | {"start": str(trained), "vision": [vision], "language": TINY["language"] | {"steps": 0}}


def test_killed_training_resumes_to_the_same_weights(tmp_path):
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(TINY))
    whole = start(recipe, tmp_path / "whole")
    _, errors = whole.communicate()
    assert whole.returncode == 0, errors

    for stage, after in (("vision1", 3), ("language", 5)):
        run = start(recipe, tmp_path / "killed")
        while steps_done(tmp_path / "killed", stage) < after:
            assert run.poll() is None, run.communicate()[1]
            time.sleep(0.02)
        run.send_signal(signal.SIGKILL)
        run.communicate()
        assert not (tmp_path / "killed" / "tiny" / "config.json").exists(), "killed too late to prove anything"
    last = start(recipe, tmp_path / "killed")
    _, errors = last.communicate()
    assert last.returncode == 0, errors

    expected = load_file(tmp_path / "whole" / "tiny" / "model.safetensors")
    resumed = load_file(tmp_path / "killed" / "tiny" / "model.safetensors")
    assert expected.keys() == resumed.keys()
    for name, value in expected.items():
        torch.testing.assert_close(resumed[name].float(), value.float(), atol=1e-3, rtol=1e-2)
    recipe.write_text(yaml.safe_dump(further(tmp_path / "whole" / "tiny")))
    more = start(recipe, tmp_path / "further")
    _, errors = more.communicate()
    assert more.returncode == 0, errors
    kept = load_file(tmp_path / "further" / "tiny" / "model.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in expected.items())
    stages = [json.loads(line)["stage"] for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert {"vision1", "vision2", "language"} <= set(stages)


def test_a_run_of_another_recipe_is_not_continued(tmp_path):
    from recipes.zoo.train import train

    (tmp_path / "run.txt").write_text("something else")
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(TINY))
    with pytest.raises(FoveateError, match="another configuration"):
        train(recipe, tmp_path)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_start_that_was_not_trained_is_named(tmp_path, processes):
    from recipes.zoo.train import train

    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(TINY | {"start": str(tmp_path / "nothing"), "processes": processes}))
    with pytest.raises(FoveateError, match="no trained model in .*nothing"):
        train(recipe, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "blip"}, "blip"),
        ({"learning_rate": 1}, "unknown learning_rate"),
        ({"vision": [{"steps": 3}]}, "phases missing"),
        ({"vision": 7}, "expected a list"),
        ({"vision": [TINY["vision"][0] | {"forced": True}]}, "needs a teacher"),
        ({"vision": [TINY["vision"][0] | {"distil_weight": 1.0}]}, "needs a teacher"),
        ({"vision": [TINY["vision"][0] | {"steps": 0}]}, "without steps"),
        ({"vision": [TINY["vision"][0] | {"phases": []}]}, "until 1.0"),
        ({"language": TINY["language"] | {"phases": [{"until": 0.9, "batches": [ONE]}]}}, "until 1.0"),
        ({"language": TINY["language"] | {"type_weights": {"count": 0}}}, "count: 0"),
        ({"language": TINY["language"] | {"loss_weights": {"counting": 2.0}}}, "counting: 2.0"),
        ({"language": TINY["language"] | {"reach_windows": {"count": [1, 3]}}}, r"count: \[1, 3\] of 2"),
        ({"language": TINY["language"] | {"reach_windows": {"count": [1, 1]}}}, r"count: \[1, 1\]"),
        ({"order": [0, 2]}, "order"),
        ({"heads": {2: [0]}}, r"layers of 2, not \[2\]"),
        ({"silent": [3]}, r"layers of 2, not \[3\]"),
        ({"heads": {1: [0, 2]}}, r"heads of 2, not \[2\]"),
        (of_batches(FILM | {"frames": 0}), "even number"),
        (of_batches(FILM | {"frames": 3}), "even number"),
        (of_batches(ONE | {"shows": "x"}), "shows"),
        ({"teacher": "foveate/scenes-qwen2_5_vl"}, "only llava learns"),
    ],
)
def test_wrong_recipes_are_refused(tmp_path, change, message):
    recipe = tmp_path / "wrong.yaml"
    recipe.write_text(yaml.safe_dump(TINY | change))
    with pytest.raises(config.ZooConfigError, match=message):
        config.load(recipe)


def test_a_llava_learns_from_the_shipped_model_and_answers(tmp_path):
    """Every part of its recipe, two steps each: layers on the teacher's states, all together, questions."""
    from foveate import scenes
    from foveate.inference.answer import Asker
    from recipes.zoo.train import train

    recipe = yaml.safe_load((Path(config.__file__).parent / "configs" / "llava.yaml").read_text())
    one = ONE | {"pages": 1, "fit": 112, "size": [168, 112]}
    short = {"steps": 2, "phases": [{"until": 1.0, "batches": [one]}]}
    recipe["vision"] = [part | short for part in recipe["vision"]]
    recipe["language"] |= short | {"phases": [{"until": 1.0, "batches": [one | {"pages": 0}]}]}
    file = tmp_path / "llava.yaml"
    file.write_text(yaml.safe_dump(recipe))
    folder = train(file, tmp_path / "out")
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in log] == ["vision1", "vision2", "language"]
    for line in log[:2]:
        assert {"distil", "states", "looks", "presence", "characters"} <= set(line)
    assert all(math.isfinite(value) for line in log for value in line.values() if isinstance(value, float))
    asker = Asker.load(str(folder), 4)
    assert asker.model.config.model_type == "llava"
    sample = scenes.load("test", n=1)[0]
    (answer,) = asker.answer(asker.questions([(sample.images, sample.question)]))
    assert answer.tokens


def test_missing_recipes_name_those_there_are():
    with pytest.raises(config.ZooConfigError, match=r"qwen2_5_vl\.yaml"):
        config.load("qwen3.yaml")


def test_the_command_names_what_is_wrong(tmp_path):
    from recipes.zoo.__main__ import zoo

    app = typer.Typer()
    app.command()(zoo)
    done = CliRunner().invoke(app, ["--config", "qwen3.yaml", "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "qwen2_5_vl_run5.yaml" in done.output


@pytest.mark.parametrize("file", sorted(p.name for p in (Path(config.__file__).parent / "configs").glob("*.yaml")))
def test_every_recipe_is_readable(file):
    """By name, from any folder; what a recipe starts from is another recipe's model or one that ships."""
    from foveate import zoo

    recipe = config.load(file)
    for before in filter(None, (recipe.start, recipe.teacher)):
        assert before in zoo.names() or before.removeprefix("runs/").split("/")[1] == recipe.name


def test_damaged_checkpoints_are_refused(tmp_path):
    (tmp_path / "vision1.pt").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(FoveateError, match="delete it"):
        checkpoint.load(tmp_path / "vision1.pt")


def test_rates_and_decay_go_where_the_recipe_says():
    """One step from a zero gradient's state: vectors keep their size, the tower moves at its share of the rate."""
    torch.manual_seed(0)
    shapes = {"tower.a.weight": (6, 6), "text.a.weight": (6, 6), "text.norm": (6,), "text.embed.weight": (9, 6)}
    named = [(name, torch.nn.Parameter(torch.ones(shape))) for name, shape in shapes.items()]
    optimiser = MuonAdamW(named, 0.1, 1.0, lambda name: 0.25 if name.startswith("tower") else 1.0)
    gradient = torch.randn(6, 6)
    for _, p in named:
        p.grad = gradient.clone() if p.shape == (6, 6) else torch.zeros_like(p)
    optimiser.step(0.5)
    after = dict(named)
    assert torch.equal(after["text.norm"], torch.ones(6))
    torch.testing.assert_close(after["text.embed.weight"], torch.full((9, 6), 1 - 0.05 * 0.01))
    moved = {name: (1 - after[name]).detach() for name in ("tower.a.weight", "text.a.weight")}
    torch.testing.assert_close(moved["tower.a.weight"] * 4, moved["text.a.weight"], atol=2e-6, rtol=1e-5)
    singular = torch.linalg.svdvals((moved["text.a.weight"] - 0.5 * 0.01) / 0.5)
    assert singular.min() > 0.5
    assert singular.max() < 1.5


def test_an_optimiser_goes_on_from_its_state(tmp_path):
    def run(steps, state=None, weights=None):
        torch.manual_seed(0)
        named = [("a.weight", torch.nn.Parameter(torch.randn(5, 7))), ("a.bias", torch.nn.Parameter(torch.randn(5)))]
        optimiser = MuonAdamW(named, 0.1, 0.1, lambda name: 1.0)
        if state is not None:
            optimiser.load_state_dict(state)
            for (_, p), value in zip(named, weights, strict=True):
                p.data.copy_(value)
        for step in steps:
            for _, p in named:
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            optimiser.step(1 - step / 10)
        return optimiser, [p.detach() for _, p in named]

    optimiser, weights = run(range(4))
    checkpoint.save(tmp_path / "half.pt", {"optimiser": optimiser.state_dict()})
    resumed = run(range(4, 8), checkpoint.load(tmp_path / "half.pt")["optimiser"], weights)[1]
    for got, expected in zip(resumed, run(range(8))[1], strict=True):
        assert torch.equal(got, expected)


def test_gradients_are_clipped_together():
    parameters = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 2))]
    parameters[0].grad = torch.full((3,), 2.0)
    assert share_gradients(parameters, 1.0) == pytest.approx(math.sqrt(12))
    assert parameters[0].grad.norm().item() == pytest.approx(1.0, rel=1e-5)
    assert parameters[1].grad.abs().sum() == 0, "a parameter that was not used has a gradient of zeros"


def test_cosine_warms_up_and_falls():
    values = [cosine(i / 100) for i in range(101)]
    assert values[0] == 0
    assert max(values) == values[2] == 1
    assert values[2:] == sorted(values[2:], reverse=True)
    assert values[-1] == pytest.approx(0.02)
