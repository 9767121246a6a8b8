"""Choosing the processor's capability for a replay, which has to happen before torch is loaded.

A machine can enter a narrower class than its own, never a wider one, and only a value listed here is ever set.
Implements specs/verification.md, check 10, part "environment class".
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polstore.wire.environment import Environment

__all__ = ["NARROWEST", "narrow"]

CAPABILITY = {"AVX2": "avx2", "DEFAULT": "default"}  # as torch reports it -> what makes a wider processor use it
LIMITS = {  # variables that a class records as flags -> the values that narrow
    "ONEDNN_MAX_CPU_ISA": frozenset({"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE"}),
    "MKL_ENABLE_INSTRUCTIONS": frozenset({"SSE4_2", "AVX", "AVX2", "AVX512"}),
}

NARROWEST = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}  # what every processor can enter


def narrow(recorded: Environment) -> None:
    """Set the process environment for a recorded CPU class; does nothing once torch is loaded, or for a GPU's class."""
    if "torch" in sys.modules or recorded.device != "cpu":
        return
    if recorded.capability in CAPABILITY:
        os.environ.setdefault("ATEN_CPU_CAPABILITY", CAPABILITY[recorded.capability])
    for name, value in recorded.flags:
        if value in LIMITS.get(name, ()):
            os.environ.setdefault(name, value)
