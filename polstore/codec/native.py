"""The codec's inner loops, compiled where there was a C compiler when this was installed.

Where not, `compiled` is None, and the modules that ask for it go on in numpy or torch: the same bits, more slowly. Of
which did the work, nothing shows in what is stored but the last digits of norms, whose order of summation is free. With
POLSTORE_NATIVE=0 in the environment the compiled loops are left alone.
"""

from __future__ import annotations

import os

__all__ = ["compiled"]

try:
    from polstore.codec import _native as compiled
except ImportError:
    compiled = None  # type: ignore[assignment]

if os.environ.get("POLSTORE_NATIVE") == "0":
    compiled = None  # type: ignore[assignment]
