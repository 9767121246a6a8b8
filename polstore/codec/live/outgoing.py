"""From a CUDA device to pinned host memory, on a stream of its own: the training's next kernels do not wait for it."""

from __future__ import annotations

import torch

__all__ = ["Outgoing"]


class Outgoing:
    """Copies on their way to the host; one stream for each device."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def send(self, source: torch.Tensor, target: torch.Tensor) -> torch.cuda.Event:
        """Begin to copy a tensor on a device to pinned memory.

        Args:
            source: what the current stream has been told to fill. It must not be written to before `hold_back`.
            target: on the host, of the same dtype and shape.

        Returns:
            What to wait for before the target is read.
        """
        device = source.device
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream = self._streams[device]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
        source.record_stream(stream)  # its memory is given to nobody else before
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record(stream)
        return arrived

    def hold_back(self) -> None:
        """Have what the current streams are told from here on come after the copies begun so far."""
        for device, stream in self._streams.items():
            torch.cuda.current_stream(device).wait_stream(stream)
