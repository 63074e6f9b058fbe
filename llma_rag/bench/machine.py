"""Name the machine that a measurement ran on."""

import platform
from pathlib import Path


def processor() -> str:
    """Return the name of the processor as the system gives it."""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
