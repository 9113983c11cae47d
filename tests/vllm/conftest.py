"""Collected where vLLM is: `make vllm-test` sets such an environment up."""

from __future__ import annotations

import os
from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("vllm") else ["test_*.py"]

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",  # exceptions of the engine reach the test
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_NO_USAGE_STATS="1",
    VLLM_LOGGING_LEVEL="ERROR",
)
