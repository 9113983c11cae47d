"""The classes of vLLM that the plugin prunes, each with the two mixins. Imported by vLLM when it loads such a model."""

from __future__ import annotations

from vllm.model_executor.models import interns1, llava, qwen2_5_vl, qwen2_vl, qwen3_vl
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import BaseProcessingInfo

from foveate.plugins.vllm.model import PrunedModel
from foveate.plugins.vllm.processing import PrunedInfo, PrunedProcessor


class LlavaInfo(PrunedInfo, llava.LlavaProcessingInfo):
    pass


class LlavaProcessor(PrunedProcessor, llava.LlavaMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(LlavaProcessor, info=LlavaInfo, dummy_inputs=llava.LlavaDummyInputsBuilder)
class PrunedLlava(PrunedModel, llava.LlavaForConditionalGeneration):
    tower_name = "vision_tower"


class Qwen2VLInfo(PrunedInfo, qwen2_vl.Qwen2VLProcessingInfo):
    pass


class Qwen2VLProcessor(PrunedProcessor, qwen2_vl.Qwen2VLMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    Qwen2VLProcessor, info=Qwen2VLInfo, dummy_inputs=qwen2_vl.Qwen2VLDummyInputsBuilder
)
class PrunedQwen2VL(PrunedModel, qwen2_vl.Qwen2VLForConditionalGeneration):
    tower_name = "visual"


class Qwen25VLInfo(PrunedInfo, qwen2_5_vl.Qwen2_5_VLProcessingInfo):
    pass


class Qwen25VLProcessor(PrunedProcessor, qwen2_5_vl.Qwen2_5_VLMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    Qwen25VLProcessor, info=Qwen25VLInfo, dummy_inputs=qwen2_5_vl.Qwen2_5_VLDummyInputsBuilder
)
class PrunedQwen25VL(PrunedModel, qwen2_5_vl.Qwen2_5_VLForConditionalGeneration):
    tower_name = "visual"


class Qwen3VLInfo(PrunedInfo, qwen3_vl.Qwen3VLProcessingInfo):
    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        """vLLM adds to those of videos, so there must be some."""
        found: dict[str, set[str]] = BaseProcessingInfo.get_supported_mm_processor_kwargs(self)
        return {"videos_kwargs": set(), **found}


class Qwen3VLProcessor(PrunedProcessor, qwen3_vl.Qwen3VLMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3VLProcessor, info=Qwen3VLInfo, dummy_inputs=qwen3_vl.Qwen3VLDummyInputsBuilder
)
class PrunedQwen3VL(PrunedModel, qwen3_vl.Qwen3VLForConditionalGeneration):
    tower_name = "visual"


class InternVLInfo(PrunedInfo, interns1.InternS1ProcessingInfo):
    pass


class InternVLProcessor(PrunedProcessor, interns1.InternS1MultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    InternVLProcessor, info=InternVLInfo, dummy_inputs=interns1.InternS1DummyInputsBuilder
)
class PrunedInternVL(PrunedModel, interns1.InternS1ForConditionalGeneration):
    tower_name = "vision_tower"
