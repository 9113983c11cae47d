"""The entry point of vLLM's group `vllm.general_plugins`. vLLM calls it in every process; without `foveate` in
`--hf-overrides` it changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any

from foveate.errors import ConfigurationError
from foveate.plugins.vllm.settings import NAME

CLASSES = {
    "LlavaForConditionalGeneration": "PrunedLlava",
    "LlavaNextForConditionalGeneration": "PrunedLlavaNext",
    "Qwen2VLForConditionalGeneration": "PrunedQwen2VL",
    "Qwen2_5_VLForConditionalGeneration": "PrunedQwen25VL",
    "Qwen3VLForConditionalGeneration": "PrunedQwen3VL",
    "InternVLForConditionalGeneration": "PrunedInternVL",
}
PREFIX = "Foveate"
"""Our architectures are called this and what vLLM calls its own."""


@cache
def register() -> None:
    """Make the pruned classes known, and look at every model's configuration before it is loaded."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

    for architecture in ModelRegistry.get_supported_archs():
        known = MODELS_CONFIG_MAP.get(architecture, VerifyAndUpdateConfig)
        MODELS_CONFIG_MAP[architecture] = _looking(known)
    for architecture, name in CLASSES.items():
        ModelRegistry.register_model(PREFIX + architecture, f"foveate.plugins.vllm.classes:{name}")


def _looking(known: Any) -> Any:
    """vLLM's own look at a configuration, then ours."""

    class Looking(known):
        @staticmethod
        def verify_and_update_model_config(model_config: Any) -> None:
            known.verify_and_update_model_config(model_config)
            check_spelling(model_config.hf_overrides)
            if getattr(model_config.hf_config, NAME, None) is not None:
                take_over(model_config)

        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            known.verify_and_update_config(vllm_config)
            if getattr(vllm_config.model_config.hf_config, NAME, None) is not None:
                check_engine(vllm_config)

    return Looking


def check_spelling(overrides: Any) -> None:
    """Refuse a key that is almost ours: vLLM takes any key, and would serve unpruned without a word.

    Raises:
        ConfigurationError: there is one.
    """
    keys = [str(key) for key in overrides] if isinstance(overrides, Mapping) else []
    if near := [key for key in keys if key != NAME and _is_near(key.lower())]:
        raise ConfigurationError(
            f'--hf-overrides: {", ".join(near)} means nothing here; write {{"{NAME}": {{"method": ..., "keep": ...}}}}.'
        )


def _is_near(key: str) -> bool:
    return key.startswith(NAME) or bool(get_close_matches(key, [NAME], cutoff=0.8))


def take_over(model_config: Any) -> None:
    """Let vLLM load our class.

    Raises:
        ConfigurationError: there is none for this model, or it cannot prune as it should.
        UnsupportedModelError: images of such a model cannot be pruned.
    """
    from foveate.plugins.vllm.images import is_one_axis
    from foveate.plugins.vllm.processing import plan_of

    config = model_config.hf_config
    architecture = str(model_config.architecture).removeprefix(PREFIX)
    tower = getattr(getattr(config, "vision_config", None), "model_type", None)
    if architecture not in CLASSES or tower == "pixtral" or model_config.multimodal_config is None:
        what = f"{architecture} with a Pixtral tower" if tower == "pixtral" else architecture
        raise ConfigurationError(
            f"foveate cannot prune {what} in vLLM; it can {', '.join(CLASSES)} (of InternVL, checkpoints in "
            "transformers' format). Leave foveate out of --hf-overrides, or use `foveate serve`."
        )
    ours = sorted(key for key in model_config.multimodal_config.mm_processor_kwargs or {} if key.startswith(NAME))
    if ours:
        raise ConfigurationError(f"--mm-processor-kwargs: {', '.join(ours)} belongs to requests; give foveate's keep.")
    method = plan_of(model_config).settings.method
    if is_one_axis(config) and method.positions == "original":
        # vLLM takes positions of ours only where it finds M-RoPE; the language model's own configuration stays as it is
        config.rope_parameters = {"mrope_section": [0, 0, 0]}
    config.architectures = [PREFIX + architecture]


def check_engine(vllm_config: Any) -> None:
    """Refuse what goes around our class, or splits it.

    Raises:
        ConfigurationError: such an option is on.
    """
    parallel, compilation = vllm_config.parallel_config, vllm_config.compilation_config
    multimodal = vllm_config.model_config.multimodal_config
    images = multimodal.get_limit_per_prompt("image")
    refused = {
        "pipeline parallelism (--pipeline-parallel-size)": parallel.pipeline_parallel_size > 1,
        "speculative decoding (--speculative-config)": vllm_config.speculative_config is not None,
        "CUDA graphs of the encoder (cudagraph_mm_encoder)": getattr(compilation, "cudagraph_mm_encoder", False),
        "a compiled encoder (compile_mm_encoder)": getattr(compilation, "compile_mm_encoder", False),
        "a data-parallel encoder (--mm-encoder-tp-mode data)": getattr(multimodal, "mm_encoder_tp_mode", "") == "data"
        and parallel.tensor_parallel_size > 1,
        "video pruning (--video-pruning-rate)": bool(getattr(multimodal, "video_pruning_rate", None)),
        "embeddings as input (--enable-mm-embeds)": getattr(multimodal, "enable_mm_embeds", False),
        "an encoder in another process (--ec-transfer-config)": getattr(vllm_config, "ec_transfer_config", None),
        "a server without images (--language-model-only, --limit-mm-per-prompt)": not images,
    }
    if found := [what for what, on in refused.items() if on]:
        raise ConfigurationError(f"foveate does not work with {', '.join(found)} in vLLM; leave it out.")
