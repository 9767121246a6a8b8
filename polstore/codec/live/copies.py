"""Copies: tensors that are captured as they are, those of one dtype on one device strung together in one new buffer.

From a CUDA device that is one transfer, which the training does not wait for. Knows no snapshot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from polstore.codec.quantised import Quantised
from polstore.codec.snapshot import CARRIER, carrier_count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from polstore.codec.live.lanes import Row
    from polstore.codec.live.outgoing import Outgoing

__all__ = ["copy_exactly"]


def copy_exactly(rows: Sequence[Row], outgoing: Outgoing) -> tuple[list[Quantised], torch.cuda.Event | None]:
    """Copy tensors of one dtype on one device; the arrays are new.

    Args:
        rows: the tensors, at least one.
        outgoing: takes what is on a CUDA device to the host.

    Returns:
        A part for each, in their order, and what has to be waited for before their items are read.
    """
    first = rows[0]
    sizes = [row.live.numel() for row in rows]
    flat = torch.empty(sum(sizes), dtype=first.live.dtype, device=first.live.device)
    views = [view.view(row.shape) for view, row in zip(torch.split(flat, sizes), rows, strict=True)]
    torch._foreach_copy_(views, [row.live for row in rows])
    arrived = None
    if flat.is_cuda:
        pinned = torch.empty(flat.shape, dtype=flat.dtype, device="cpu", pin_memory=True)
        arrived = outgoing.send(flat, pinned)
        flat = pinned
    # An empty tensor may have a stride that no view as bytes allows.
    items = (
        flat.view(torch.uint8).numpy().view(CARRIER[first.dtype]) if flat.numel() else np.empty(0, CARRIER[first.dtype])
    )
    parts = []
    start = 0
    for row in rows:
        end = start + carrier_count(row.dtype, row.shape)
        parts.append(Quantised(row.name, row.dtype, row.shape, row.partner, items=items[start:end]))
        start = end
    return parts, arrived
