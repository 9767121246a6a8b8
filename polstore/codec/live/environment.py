"""Reading this process's environment class, and entering a recorded one as far as a process can.

Implements specs/run-records.md, section "Environment class". What is chosen when torch is loaded, the processor's
capability above all, cannot be entered any more; environment variables say it before that.
"""

from __future__ import annotations

import functools
import os
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from polstore.errors import CallerError, UsageError
from polstore.wire.environment import Environment

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["detect", "enter", "make_deterministic"]

_DEVICE = re.compile(r"cpu|cuda(:[0-9]{1,3})?", re.ASCII)
UNSET = "default"
VARIABLES = (
    "ONEDNN_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "CUBLAS_WORKSPACE_CONFIG",
)  # read by the libraries when they start


def make_deterministic(device: str) -> None:
    """Ask for deterministic kernels where they are not the rule: on CUDA devices.

    Raises:
        UsageError: a name that is none of a device.
        CallerError: this machine has no such device.
    """
    _require_device(device)
    if torch.device(device).type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(mode=True)
        torch.backends.cudnn.benchmark = False


def _require_device(device: str) -> None:
    if _DEVICE.fullmatch(device) is None:
        raise UsageError("device", expected="cpu, cuda or cuda:N", got=device)
    if device != "cpu":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(device.partition(":")[2] or 0) >= count:
            raise CallerError("no such device here", expected=device, got=f"{count} CUDA devices")


def detect(device: str) -> Environment:
    """Return the environment class of this process on ``device``."""
    kind = torch.device(device).type
    flags = {name: _text(read()) for name, (read, _) in _SETTINGS.items()}
    flags |= {name: os.environ.get(name) or UNSET for name in VARIABLES}
    flags["autocast"] = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else "off"
    flags["default_dtype"] = str(torch.get_default_dtype())
    if kind == "cuda":
        name = torch.cuda.get_device_name(device)
        flags["cuda"] = str(torch.version.cuda)
        flags["cudnn"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]  # torch leaves it untyped
    else:
        name = _processor()
    return Environment(
        device=kind,
        device_name=name,
        torch=str(torch.__version__),
        capability=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        flags=tuple(sorted(flags.items())),
    )


def enter(recorded: Environment, device: str) -> Environment:
    """Set thread count and math flags as recorded and return the class that this process is then in.

    Only settings of a fixed list are touched, each only with a value from that setting's own list.
    """
    if recorded.threads <= 4 * (os.cpu_count() or 1):  # more would not be this class anyway, and could hang the machine
        torch.set_num_threads(recorded.threads)
    for name, value in recorded.flags:
        if name in _SETTINGS:
            read, write = _SETTINGS[name]
            if value != _text(read()) and value in _ALLOWED[name]:
                write(_ALLOWED[name][value])
    return detect(device)


def _text(value: object) -> str:
    return str(value).lower()


@functools.cache
def _processor() -> str:
    """Return the processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def _attribute(owner: Any, name: str) -> tuple[Callable[[], object], Callable[[Any], None]]:
    return (lambda: getattr(owner, name)), (lambda value: setattr(owner, name, value))


def _mkldnn(enabled: bool) -> None:  # noqa: FBT001 # the shape of a setter
    torch.backends.mkldnn.set_flags(enabled)  # type: ignore[no-untyped-call]  # likewise


_SETTINGS: dict[str, tuple[Callable[[], object], Callable[[Any], None]]] = {
    "deterministic_algorithms": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    "float32_matmul_precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "onednn": (lambda: torch.backends.mkldnn.enabled, _mkldnn),
    "cudnn_benchmark": _attribute(torch.backends.cudnn, "benchmark"),
    "cudnn_deterministic": _attribute(torch.backends.cudnn, "deterministic"),
    "cudnn_tf32": _attribute(torch.backends.cudnn, "allow_tf32"),
}
_BOOLEAN = {"true": True, "false": False}
_ALLOWED: dict[str, dict[str, Any]] = dict.fromkeys(_SETTINGS, _BOOLEAN) | {
    "float32_matmul_precision": {name: name for name in ("highest", "high", "medium")}
}
