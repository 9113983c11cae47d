"""Whether a grammar can be compiled at all, tried where it can be stopped.

llguidance bounds most of what a schema makes it do, but not all: numbers that are multiples of a hundred million, or
texts under twenty patterns at once, keep it busy for hours, in a thread that nothing ends. A stranger's schema is
therefore compiled in a process of its own first, whose seconds and bytes are counted.
"""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache

from foveate.errors import SchemaError

SECONDS = 2
"""Of a processor; what people write takes hundredths."""
MEGABYTES = 2048
PATIENCE = 60
"""Seconds by the clock, for a machine that is busy with other work."""
REMEMBERED = 256

TRIAL = f"""
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, {SECONDS}))
    resource.setrlimit(resource.RLIMIT_AS, ({MEGABYTES} * 2**20,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except ImportError:  # not everywhere; there the clock has to do
    pass
import sys
from llguidance import LLMatcher, LLTokenizer
LLMatcher(LLTokenizer("byte"), sys.stdin.buffer.read().decode(), log_level=0)
"""


@lru_cache(REMEMBERED)
def check_compiles(grammar: str) -> None:
    """Compile a grammar for an alphabet of bytes and forget it. What passed is remembered.

    Raises:
        SchemaError: it takes too long or too much memory.
    """
    try:
        code = subprocess.run(
            [sys.executable, "-P", "-c", TRIAL],
            input=grammar.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE,
            start_new_session=True,  # Ctrl-C in a terminal is the server's affair
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        code = 1
    if code:
        raise SchemaError(
            f"The schema cannot be followed: making it ready takes more than {SECONDS} seconds. Use smaller numbers in "
            "multipleOf and repetitions, or fewer patterns on one text."
        )
