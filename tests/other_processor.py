"""A plugin of pytest that has kernels written for another processor than the one at hand.

`LLMA_RAG_MACHINE` and `LLMA_RAG_FEATURES` say which; numba compiles for `NUMBA_CPU_FEATURES`, which
must be instructions that the processor at hand has.
"""

import os
import platform

from llma_rag.compiled import CONFIG

_machine, _features = platform.machine, CONFIG.CPU_FEATURES
platform.machine = lambda: os.environ["LLMA_RAG_MACHINE"]
CONFIG.CPU_FEATURES = os.environ["LLMA_RAG_FEATURES"]

import llma_rag.engine.cpu.vectors  # noqa: E402, F401  # it decides what kernels are written for

platform.machine, CONFIG.CPU_FEATURES = _machine, _features
