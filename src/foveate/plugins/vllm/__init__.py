"""vLLM with fewer visual tokens: a plugin of its group `vllm.general_plugins`. See docs/vllm.md."""
