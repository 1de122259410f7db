"""A trial of a tokenizer's chat template in a process of its own, since a template may compute without end."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache

from neuroflamingo_preprocessing.errors import ModelError

SECONDS, MEMORY = 5, 2**31
"""Processor time and memory of a trial; a template takes milliseconds."""
_CHILD = """
import json, resource, sys
seconds, memory, template = json.loads(sys.stdin.read())
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
from jinja2.sandbox import ImmutableSandboxedEnvironment
environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
)
words = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_generation_prompt": True}
said = [{"role": "user", "content": "<image>\\nWhat is seen?"}, {"role": "assistant", "content": "No mass."}]
try:
    environment.from_string(template).render(messages=said, **words)
except MemoryError:
    sys.exit(2)
except Exception:
    pass
"""


@lru_cache(maxsize=64)
def try_chat_template(template: str) -> None:
    """Render a short conversation by a template, within limits; what else is wrong with it, its use will tell.

    Raises:
        ModelError: it does not come to an end, or takes all memory (exit 65).
    """
    job = json.dumps([SECONDS, MEMORY, template])
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _CHILD], input=job, text=True, capture_output=True, timeout=100 * SECONDS
        )
        ended = done.returncode in (0, 1)
    except subprocess.TimeoutExpired:
        ended = False
    if not ended:
        raise ModelError(
            "the tokenizer's chat template does not come to an end",
            expected=f"a short conversation within {SECONDS} s of computing and {MEMORY >> 30} GB",
            seen=f"a template of {len(template):,} characters that takes more",
            hint="use the chat template of the original model, or another data.template",
            exit_code=65,
        )
