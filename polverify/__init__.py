"""The arbiter: checks a proof-of-learning against a signed root and says ACCEPT, REJECT or INCONCLUSIVE.

It trusts nobody: nothing that comes out of a proof is executed, unpickled, or allowed to choose a check.
"""

from __future__ import annotations

__version__ = "0.1.0"
