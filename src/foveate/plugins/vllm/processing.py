"""Prompts with fewer placeholders: parts of vLLM's processors, mixed into those of its models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import BaseProcessingInfo, PromptReplacement, PromptUpdate, PromptUpdateDetails

from foveate.plugins.vllm.images import PIXELS, Images
from foveate.plugins.vllm.plan import PruningPlan
from foveate.plugins.vllm.settings import KEEP, NAME, SALT, Settings

KEPT, EXTENT, SHARE = "foveate_kept", "foveate_extent", "foveate_share"
"""What every image brings besides its pixels: tokens that stay, positions that it spans, share that was asked for."""


_PLANS: dict[str, PruningPlan] = {}


def plan_of(model_config: Any) -> PruningPlan:
    """The plan of a vLLM model configuration; made once in a process."""
    config = model_config.hf_config
    key = f"{model_config.model} {getattr(config, NAME)!r}"
    if key not in _PLANS:
        _PLANS[key] = PruningPlan(Settings.of(getattr(config, NAME), model_config.model), Images.of(config))
    return _PLANS[key]


def without_ours(kwargs: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in kwargs.items() if key not in (KEEP, SALT)}


class PrunedInfo:
    """Mixed into a `BaseProcessingInfo`: images only, and processors do not see our keys."""

    ctx: Any

    @cached_property
    def plan(self) -> PruningPlan:
        return plan_of(self.ctx.model_config)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        """Without a model's own additions, which are for videos."""
        found: dict[str, set[str]] = BaseProcessingInfo.get_supported_mm_processor_kwargs(self)
        return found

    def get_hf_processor(self, **kwargs: object) -> Any:
        return super().get_hf_processor(**without_ours(kwargs))  # type: ignore[misc]


class PrunedProcessor:
    """Mixed into a `BaseMultiModalProcessor`."""

    info: Any

    def apply(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """What a request asks for becomes part of the hash that processor, encoder and prefix cache know it by."""
        settings: Settings = self.info.plan.settings
        keep = settings.asked(inputs.hf_processor_mm_kwargs)
        own = {SALT: settings.salt(keep)} | ({} if keep is None else {KEEP: keep})
        return super().apply(replace(inputs, hf_processor_mm_kwargs=own), *args, **kwargs)  # type: ignore[misc]

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """Memory and the encoder's budget are planned for the most that a request may keep: beyond them one would wait
        for ever."""
        found = super().get_dummy_inputs(*args, **kwargs)  # type: ignore[misc]
        return replace(found, hf_processor_mm_kwargs={KEEP: self.info.plan.settings.high})

    def _get_hf_mm_inputs(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        return super()._get_hf_mm_inputs(mm_items, without_ours(hf_kwargs))  # type: ignore[misc]

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        """`hf_inputs` is what items are made of next, so our fields go into it."""
        config = dict(super()._get_mm_fields_config(hf_inputs, without_ours(hf_processor_mm_kwargs)))  # type: ignore[misc]
        plan: PruningPlan = self.info.plan
        keep = plan.settings.asked({key: value for key, value in hf_processor_mm_kwargs.items() if key != SALT})
        shapes = plan.images.shapes(hf_inputs)
        if shapes:
            hf_inputs[PIXELS] = plan.images.unpadded(hf_inputs, shapes)
            hf_inputs[KEPT] = torch.tensor([plan.kept(shape, keep) for shape in shapes])
            hf_inputs[EXTENT] = torch.tensor([plan.images.extent(shape) for shape in shapes])
            hf_inputs[SHARE] = torch.full((len(shapes),), float("nan") if keep is None else keep, dtype=torch.float64)
            field = MultiModalFieldConfig.batched("image", keep_on_cpu=True)
            config |= dict.fromkeys((KEPT, EXTENT, SHARE), field)
        return config

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[PromptUpdate]:
        updates = super()._get_prompt_updates(  # type: ignore[misc]
            mm_items, without_ours(hf_processor_mm_kwargs), out_mm_kwargs
        )
        token = self.info.plan.images.family.token_ids["image"]

        def shortened(update: Any) -> PromptUpdate:
            def content(number: int) -> PromptUpdateDetails:
                own = update.content(number) if callable(update.content) else update.content
                return shorten(own, token, int(out_mm_kwargs["image"][number][KEPT].data))

            return PromptReplacement(modality="image", target=update.target, replacement=content)

        return [shortened(update) if update.modality == "image" else update for update in updates]


def shorten(content: Any, token: int, kept: int) -> PromptUpdateDetails:
    """What stands for an image, with only so many of its placeholders."""
    full = list(content.full if isinstance(content, PromptUpdateDetails) else content)
    places = [place for place, id in enumerate(full) if id == token]
    assert kept <= len(places), f"an image of {len(places)} placeholders cannot keep {kept}"
    dropped = set(places[kept:])
    return PromptUpdateDetails.select_token_id([id for place, id in enumerate(full) if place not in dropped], token)
