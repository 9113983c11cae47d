"""Models that cannot be pruned by dropping tokens of a decoder, and why."""

from __future__ import annotations

from typing import Any

from torch import nn

CROSS = "its images enter by cross-attention, not as tokens of the decoder, so there are no visual tokens to drop"
ENCODER_DECODER = "it is an encoder-decoder: what reads the image is an encoder without a KV cache to shorten"
DIFFUSION = "it generates by diffusion or has an action head, which read all tokens at every step"
INDEXED = "its layers choose keys by an index of their own (sparse attention), which would point to dropped tokens"

RELATIVE = "its attention depends on relative distances in the cache, which dropping would change"
BYPASS = (
    "its `generate` runs the language model alone, on embeddings in which images and text have been joined before, so "
    "there is no call in which visual tokens could be told from text"
)

REFUSED: dict[str, str] = {
    **dict.fromkeys(("mllama", "mllama_text_model", "idefics", "blip", "git"), CROSS),
    **dict.fromkeys(
        (
            "florence2",
            "pix2struct",
            "udop",
            "vision-encoder-decoder",
            "trocr",
            "donut-swin",
            "bart",
            "pp_formulanet",
            "t5gemma2",
        ),
        ENCODER_DECODER,
    ),
    **dict.fromkeys(("pi0", "pi0_fast", "smolvla", "diffusion_gemma"), DIFFUSION),
    **dict.fromkeys(("mistral_large4", "glm5_next", "dots3_note", "qwen4_exp"), INDEXED),
    **dict.fromkeys(("blip-2", "instructblip", "instructblipvideo"), BYPASS),
    "nemotron_h_omni": "it prunes video tokens itself and shortens `input_ids` on the way (EVS)",
    "kosmos-2": "its images stand at positions given by a mask of their own, not at placeholder tokens",
    "kosmos-2.5": "its images stand at positions given by a mask of their own, not at placeholder tokens",
    **dict.fromkeys(("inkling_mm_model", "inkling2"), RELATIVE),
    "evolla": "it reads proteins, not images",
    "mistral4": "it reads no images: the automatic class builds a language model alone",
    "unlimited_ocr": (
        "its cache keeps the first pass as a reference and slides over the answer, told apart by lengths that dropping "
        "would change"
    ),
}
"""Model type -> why it cannot be pruned. `git` concatenates its image in front of the text without placeholders."""

NO_VIDEO: dict[str, str] = {
    "kimi_k25": (
        "its stock code averages the frames of a video and then cuts the result into as many pieces as before, which "
        "fails for more than one frame"
    ),
}
"""Model type -> why its videos cannot be pruned although its images can."""

REFUSED["git"] = "it puts the image in front of the text itself, so the prompt has no placeholder tokens"


def type_refusal(config: Any) -> str | None:
    """Why models of this configuration cannot be pruned, None if nothing speaks against it."""
    reason = REFUSED.get(str(getattr(config, "model_type", None)))
    if reason is None and getattr(config, "is_encoder_decoder", False):
        reason = ENCODER_DECODER
    return None if reason is None else f"{reason}."


def layer_refusal(layers: nn.ModuleList) -> str | None:
    """Why a language model of such layers cannot be pruned."""
    for name, module in layers.named_modules():
        last = name.rpartition(".")[2]
        if last in ("cross_attn", "crossattention", "encoder_attn"):
            return f"{CROSS} (`layers.{name}`: {type(module).__name__})."
        if "indexer" in last:
            return f"{INDEXED} (`layers.{name}`)."
    return None
