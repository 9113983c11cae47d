"""The whole table of tiny types."""

from tests.families import llava_like, other, qwen_like, rare
from tests.families.tiny import TABLE

FILES = (llava_like, other, qwen_like, rare)
__all__ = ["FILES", "TABLE"]
