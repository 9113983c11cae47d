"""What vLLM cannot run is refused by name before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vllm.engine.arg_utils import EngineArgs

from tests.vllm.checkpoints import MAKERS, write

SETTINGS = {"method": "visionzip", "keep": 0.3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: write(family, tmp_path_factory.mktemp(family)) for family in MAKERS}


def start(folder: Path, settings: dict[str, Any], **options: Any) -> Any:
    given: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": 500}
    args = EngineArgs(str(folder), hf_overrides={"foveate": settings}, **given | options)
    return args.create_engine_config()


@pytest.mark.parametrize("family", MAKERS)
def test_accepted(family: str, folders: dict[str, Path]) -> None:
    """So that no refusal below is one of something else."""
    found = start(folders[family], SETTINGS)
    assert found.model_config.hf_config.architectures[0].startswith("Foveate")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"method": "vitcop"}, "vitcop selects inside the language model"),
        ({"method": "fastv", "keep": 0.5}, "fastv selects inside the language model"),
        ({"method": "cdpruner"}, "cdpruner reads more than the image"),
        ({"method": "tome_tower", "keep": 0.5}, "tome_tower drops tokens inside the vision tower"),
        ({"method": "prumerge"}, "prumerge decides by what it sees"),
        ({"method": "visionzip", "keep": {"threshold": 0.5}}, "must be a ratio"),
        ({"keep": 0.5}, "must be an object"),
    ],
)
def test_methods(settings: dict[str, Any], reason: str, folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=reason):
        start(folders["qwen2_5_vl"], settings)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline parallelism"),
        ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}, "speculative decoding"),
        ({"compilation_config": {"cudagraph_mm_encoder": True}}, "CUDA graphs of the encoder"),
        ({"compilation_config": {"compile_mm_encoder": True}}, "compiled encoder"),
        ({"enable_mm_embeds": True}, "embeddings as input"),
        ({"mm_processor_kwargs": {"foveate_keep": 0.5}}, "foveate_keep belongs to requests"),
    ],
)
def test_options(options: dict[str, Any], reason: str, folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=reason):
        start(folders["qwen2_5_vl"], SETTINGS, **options)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [("Qwen2ForCausalLM", "cannot prune Qwen2ForCausalLM"), ("LlavaOnevisionForConditionalGeneration", "cannot prune")],
)
def test_models(architecture: str, reason: str, folders: dict[str, Path], tmp_path: Path) -> None:
    config = json.loads((folders["llava"] / "config.json").read_text())
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        if (folders["llava"] / name).exists():
            (tmp_path / name).write_bytes((folders["llava"] / name).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))
    with pytest.raises(ValueError, match=reason):
        start(tmp_path, SETTINGS)


def test_nothing_changes_without_the_override(folders: dict[str, Path]) -> None:
    args = EngineArgs(str(folders["llava"]), dtype="float32", enforce_eager=True, max_model_len=500)
    assert args.create_engine_config().model_config.hf_config.architectures == ["LlavaForConditionalGeneration"]
