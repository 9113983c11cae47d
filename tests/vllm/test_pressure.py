"""Requests that vLLM stops for want of memory and begins again."""

from __future__ import annotations

from pathlib import Path

import pytest
from vllm import SamplingParams

from tests.vllm.checkpoints import prompt, write
from tests.vllm.live import Asked, engine, noise

SETTINGS = {"method": "visionzip", "keep": 0.3}
TOKENS = 100


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_preempted_requests_answer_as_alone(family: str, tmp_path: Path) -> None:
    text = prompt(family, "How many red circles are there? ", 1, " And which is the largest of them?")
    asked = [Asked(text, [noise(120, 120, i)], keep).for_vllm({}) for i, keep in enumerate([None, 0.6, 1.0, 0.3])]
    sampling = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    few = {"num_gpu_blocks_override": 9, "max_model_len": 256, "enable_prefix_caching": False}
    with engine(write(family, tmp_path), SETTINGS, disable_log_stats=False, **few) as running:
        alone = [running.llm.generate([one], sampling, use_tqdm=False)[0] for one in asked]
        together = running.llm.generate(asked, sampling, use_tqdm=False)
        stopped = sum(one.metrics.num_preemptions for one in together)
    assert [one.outputs[0].token_ids for one in together] == [one.outputs[0].token_ids for one in alone]
    assert stopped > 2
