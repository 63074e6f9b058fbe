"""Name the processor that we run on."""

import platform
from pathlib import Path

INSTRUCTIONS = (("avx512_bf16", "AVX-512 with bfloat16"), ("avx512f", "AVX-512"), ("avx2", "AVX2"))
"""Instructions that decide how fast a CPU multiplies, and how they are called; best first."""


def processor(listing: Path = Path("/proc/cpuinfo")) -> str:
    """Return the name of the processor as the system gives it, and its widest instructions.

    Args:
        listing: Where Linux lists the processors.
    """
    said = _said(listing)
    if not said:
        return platform.processor() or platform.machine()
    name = said.get("model name") or platform.machine()
    known = said.get("flags", "").split()
    widest = next((called for flag, called in INSTRUCTIONS if flag in known), None)
    return f"{name} ({widest})" if widest else name


def is_intel(listing: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether Linux says that the processor is one of Intel's."""
    return _said(listing).get("vendor_id") == "GenuineIntel"


def is_x86() -> bool:
    """Return whether the processor is one of x86 with 64 bits."""
    return platform.machine() in ("x86_64", "AMD64")


def _said(listing: Path) -> dict[str, str]:
    if not listing.exists():
        return {}
    lines = (line.partition(":") for line in listing.read_text().splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}
