"""Name the machine that a measurement ran on."""

import platform
from pathlib import Path

INSTRUCTIONS = (("avx512_bf16", "AVX-512 with bfloat16"), ("avx512f", "AVX-512"), ("avx2", "AVX2"))
"""Instructions that decide how fast a CPU multiplies, and how they are called; best first."""


def processor(listing: Path = Path("/proc/cpuinfo")) -> str:
    """Return the name of the processor as the system gives it, and its widest instructions.

    Args:
        listing: Where Linux lists the processors.
    """
    if not listing.exists():
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in listing.read_text().splitlines())
    said = {name.strip(): value.strip() for name, _, value in lines}
    name = said.get("model name") or platform.machine()
    known = said.get("flags", "").split()
    widest = next((called for flag, called in INSTRUCTIONS if flag in known), None)
    return f"{name} ({widest})" if widest else name
