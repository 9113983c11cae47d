"""The classes of vLLM that the plugin prunes, each with its mixins. Imported by vLLM when it loads such a model."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.models import interns1, llava, llava_next, qwen2_5_vl, qwen2_vl, qwen3_vl
from vllm.multimodal import MULTIMODAL_REGISTRY

from foveate.plugins.vllm.model import PrunedModel
from foveate.plugins.vllm.processing import PrunedInfo, PrunedProcessor


def pruned(model: type, processor: type, info: type, dummy_inputs: type) -> Any:
    """A model class of vLLM that prunes.

    Args:
        model: vLLM's own.
        processor, info, dummy_inputs: what vLLM registers it with.
    """
    ours = _mixed(PrunedModel, model)
    registered = MULTIMODAL_REGISTRY.register_processor(
        _mixed(PrunedProcessor, processor), info=_mixed(PrunedInfo, info), dummy_inputs=dummy_inputs
    )
    return registered(ours)


def _mixed(mixin: type, stock: type) -> Any:
    return type(f"Pruned{stock.__name__}", (mixin, stock), {"__module__": __name__})


PrunedLlava = pruned(
    llava.LlavaForConditionalGeneration,
    llava.LlavaMultiModalProcessor,
    llava.LlavaProcessingInfo,
    llava.LlavaDummyInputsBuilder,
)
PrunedLlavaNext = pruned(
    llava_next.LlavaNextForConditionalGeneration,
    llava_next.LlavaNextMultiModalProcessor,
    llava_next.LlavaNextProcessingInfo,
    llava.LlavaDummyInputsBuilder,
)
PrunedQwen2VL = pruned(
    qwen2_vl.Qwen2VLForConditionalGeneration,
    qwen2_vl.Qwen2VLMultiModalProcessor,
    qwen2_vl.Qwen2VLProcessingInfo,
    qwen2_vl.Qwen2VLDummyInputsBuilder,
)
PrunedQwen25VL = pruned(
    qwen2_5_vl.Qwen2_5_VLForConditionalGeneration,
    qwen2_5_vl.Qwen2_5_VLMultiModalProcessor,
    qwen2_5_vl.Qwen2_5_VLProcessingInfo,
    qwen2_5_vl.Qwen2_5_VLDummyInputsBuilder,
)
PrunedQwen3VL = pruned(
    qwen3_vl.Qwen3VLForConditionalGeneration,
    qwen3_vl.Qwen3VLMultiModalProcessor,
    qwen3_vl.Qwen3VLProcessingInfo,
    qwen3_vl.Qwen3VLDummyInputsBuilder,
)
PrunedInternVL = pruned(
    interns1.InternS1ForConditionalGeneration,
    interns1.InternS1MultiModalProcessor,
    interns1.InternS1ProcessingInfo,
    interns1.InternS1DummyInputsBuilder,
)
