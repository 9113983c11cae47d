"""A tiny base model, a small table and the settings of a fast training run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from foveate import zoo
from foveate.training.glimpse.objectives import Objective
from foveate.training.glimpse.run import GlimpseSettings

FAST = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "max_steps": 8,
    "save_steps": 2,
    "logging_steps": 2,
    "learning_rate": 0.01,
    "use_cpu": True,
    "disable_tqdm": True,
    "dataloader_num_workers": 0,
}
DISTILL = Objective(localization=0, language=0, distillation=1.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen2.5-VL with the zoo's tokenizer and image processor."""
    folder = tmp_path_factory.mktemp("base")
    shipped = Path(zoo.resolve(zoo.DEFAULT))
    raw = json.loads((shipped / "config.json").read_text())
    raw["text_config"] |= {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "layer_types": ["full_attention"] * 4,
    }
    raw["text_config"]["rope_parameters"] |= {"mrope_section": [2, 3, 3]}
    raw["vision_config"] |= {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
    }
    raw["tie_word_embeddings"] = raw["text_config"]["tie_word_embeddings"] = False  # else it echoes newlines
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**raw))
    model.float().save_pretrained(folder)
    for path in [*shipped.glob("token*.json"), *shipped.glob("*.jinja"), shipped / "preprocessor_config.json"]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for i in range(10):
        image, box = Image.new("RGB", (112, 140), "white"), (14 * (i % 5), 7 * i, 14 * (i % 5) + 30, 7 * i + 40)
        ImageDraw.Draw(image).rectangle(box, fill="red")
        image.save(folder / f"{i}.png")
        rows.append({"image": f"{i}.png", "question": f"Where is {i}?", "answer": str(i), "boxes": [list(box)]})
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def settings(base: Path, data: Path, tmp_path: Path) -> GlimpseSettings:
    return GlimpseSettings(model=str(base), data=str(data), out=tmp_path / "out", arguments=FAST)


def command(run: GlimpseSettings) -> list[str]:
    """Arguments of `foveate train glimpse` for a run."""
    options = ["--model", run.model, "--data", run.data, "--out", str(run.out)]
    return options + [x for name, value in run.arguments.items() for x in ("--set", f"{name}={value}")]
