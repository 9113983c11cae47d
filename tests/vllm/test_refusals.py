"""What vLLM cannot run is refused by name before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vllm.engine.arg_utils import EngineArgs

from foveate.specs.tuned import Tuned
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
        ({"method": "visionzip", "keep": float("nan")}, "must lie in"),
        ({"method": "visionzip", "keep": 0.8, "keep_range": [0.1, 0.5]}, "outside keep_range"),
        ({"method": "/nowhere/foveate.json"}, "Cannot read /nowhere/foveate.json"),
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
        ({"limit_mm_per_prompt": {"image": 0, "video": 0}}, "a server without images"),
        ({"language_model_only": True}, "a server without images"),
        ({"ec_transfer_config": {"ec_connector": "ECExampleConnector", "ec_role": "ec_both"}}, "in another process"),
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


def test_a_tuned_file_of_a_method_that_vllm_cannot_run(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "foveate.json"
    path.write_text(Tuned("vitcop", {"keep": 0.3}).to_json())
    with pytest.raises(ValueError, match="vitcop selects inside the language model"):
        start(folders["llava"], {"method": str(path)})


@pytest.mark.parametrize("key", ["foveat", "Foveate", "foveate_keep"])
def test_a_misspelt_override(key: str, folders: dict[str, Path]) -> None:
    """vLLM takes any key."""
    args = EngineArgs(str(folders["llava"]), dtype="float32", max_model_len=500, hf_overrides={key: SETTINGS})
    with pytest.raises(ValueError, match=f"{key} means nothing here"):
        args.create_engine_config()


def test_nothing_changes_without_the_override(folders: dict[str, Path]) -> None:
    args = EngineArgs(str(folders["llava"]), dtype="float32", enforce_eager=True, max_model_len=500)
    assert args.create_engine_config().model_config.hf_config.architectures == ["LlavaForConditionalGeneration"]
