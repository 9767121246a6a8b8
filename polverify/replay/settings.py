"""Settings under which a replay rounds differently, so that the verifier can measure how far rounding alone leads.

Thread count and oneDNN split sums differently. The rounding settings stand for classes that cannot be entered here:
after every operation whose result hangs on the order of its sums, or on a library's approximation, each element is
moved by a few units in its last place. Implements specs/tolerance.md, section "Settings".
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from polstore.wire.environment import Environment

__all__ = ["Setting", "applied", "settings_for"]

# By how much a result is moved at most, relative to itself. Sums of hundreds of products differ between two libraries
# by several units in the last place: oneDNN against torch's own kernels made five times the difference of one unit.
UNIT = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7, torch.float32: 2.0**-20, torch.float64: 2.0**-49}
# A 16-bit result is a sum in float32, rounded: classes differ where the sum lies close to the middle between two
# numbers. A sum of thousands is off by some 2^-19 of itself, against a unit of 2^-8: every 2^-11th element at most.
FLIPPED = 2.0**-11
# What enters a product is rounded to so many bits first, where the flag allows it; whether it is depends on the device.
PRECISION = {"high": 2.0**-10, "medium": 2.0**-7}  # of torch's float32_matmul_precision: TF32, bfloat16
TF32 = PRECISION["high"]

# Names of aten operations; one that this torch lacks is never called.
# fmt: off
_FORWARD = (
    "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot", "linear", "mkldnn_linear", "addr",
    "_scaled_mm", "convolution", "convolution_overrideable", "mkldnn_convolution", "cudnn_convolution",
    "cudnn_convolution_transpose", "native_batch_norm", "_native_batch_norm_legit",
    "_native_batch_norm_legit_functional", "cudnn_batch_norm", "_batch_norm_with_update", "batch_norm",
    "native_layer_norm", "native_group_norm", "_fused_rms_norm", "_softmax", "_log_softmax", "logsumexp", "sum",
    "mean", "var", "var_mean", "std", "std_mean", "norm", "linalg_vector_norm", "prod", "cumsum", "avg_pool2d",
    "avg_pool3d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d", "embedding_dense", "nll_loss_forward",
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention", "_cdist_forward",
    "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell", "_cudnn_rnn", "mkldnn_rnn_layer", "gelu", "tanh", "sigmoid",
    "silu", "exp", "log", "erf", "softplus", "mish", "sin", "cos", "pow", "rsqrt",
)
# fmt: on
ROUNDED = frozenset(name + suffix for name in _FORWARD for suffix in ("", "_backward", "_backward_data"))


@dataclass(frozen=True)
class Setting:
    """One way to round differently.

    Attributes:
        name: how the verdict calls it.
        threads: thread count, or None for the recorded one.
        onednn: whether oneDNN's kernels are the other way round from the recorded setting.
        nondeterministic: whether CUDA kernels need not be deterministic.
        rounding: seed of the rounding noise, or None for none.
        start: seed with which the start is moved within the rounding of fidelity ``float16``, or None.
    """

    name: str
    threads: int | None = None
    onednn: bool = False
    nondeterministic: bool = False
    rounding: int | None = None
    start: int | None = None


START = (Setting("start-1", start=1), Setting("start-2", start=2), Setting("start-3", start=3))
ROUNDING = tuple(Setting(f"rounding-{number}", rounding=number) for number in (1, 2, 3))
ONEDNN = Setting("onednn", onednn=True)
KERNELS = Setting("kernels", nondeterministic=True)


def settings_for(recorded: Environment, *, another: bool, rounded: bool) -> list[Setting]:
    """Return the settings for a segment.

    Args:
        recorded: its environment class.
        another: whether this machine is of another class.
        rounded: whether training went on from other values than those of the start.
    """
    found: list[Setting] = []
    if another and recorded.device == "cpu":
        found += [Setting("threads", threads=1 if recorded.threads != 1 else 2), ONEDNN]
    if another and recorded.device != "cpu":
        found.append(KERNELS)
    if another:
        found += ROUNDING
    if rounded:
        found += START
    return found


@contextlib.contextmanager
def applied(setting: Setting, recorded: Environment, here: Environment) -> Iterator[None]:
    """Put a setting in force, and afterwards what was before."""
    threads, onednn = torch.get_num_threads(), torch.backends.mkldnn.enabled
    deterministic = torch.are_deterministic_algorithms_enabled()
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        stack.callback(torch.backends.mkldnn.set_flags, onednn)
        stack.callback(torch.use_deterministic_algorithms, deterministic)
        if setting.threads is not None:
            torch.set_num_threads(setting.threads)
        if setting.onednn:
            torch.backends.mkldnn.set_flags(not onednn)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if setting.nondeterministic:
            torch.use_deterministic_algorithms(mode=False)
        if setting.rounding is not None:
            stack.enter_context(_Rounding(setting.rounding, _units(recorded, here)))
        yield


def _units(recorded: Environment, here: Environment) -> dict[torch.dtype, float]:
    """Return by how much one result may be off, relative to itself.

    On another device, processor or torch, float32 products may or may not be rounded as the flags allow.
    """
    units = dict(UNIT)
    mine, theirs = (
        (one.device, one.device_name, one.torch, one.capability if one.device == "cpu" else "")
        for one in (here, recorded)
    )
    if mine != theirs:
        flags = [dict(one.flags) for one in (here, recorded)]
        coarse = [PRECISION.get(found.get("float32_matmul_precision", ""), 0.0) for found in flags]
        if "cuda" in (here.device, recorded.device):
            coarse += [TF32 for found in flags if found.get("cudnn_tf32") == "true"]
        units[torch.float32] = max([units[torch.float32], *coarse])
    return units


class _Rounding(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Moves each element of every result in `ROUNDED` by up to one `UNIT`."""

    def __init__(self, seed: int, units: dict[torch.dtype, float]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self._seed = seed
        self._units = units
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ROUNDED:
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(tensor, torch.Tensor) and tensor.dtype in self._units and tensor.numel():
                    self._move(tensor)
        return result

    def _move(self, tensor: torch.Tensor) -> None:
        if tensor.device not in self._generators:
            generator = torch.Generator(tensor.device)
            self._generators[tensor.device] = generator.manual_seed(self._seed)
        draw = torch.rand(tensor.shape, device=tensor.device, generator=self._generators[tensor.device])
        if tensor.dtype in (torch.float16, torch.bfloat16):
            way = (draw < FLIPPED / 2).to(torch.float32) - (draw > 1 - FLIPPED / 2).to(torch.float32)
        else:
            way = draw * 2 - 1
        tensor.copy_(tensor.double() * (1 + way.double() * self._units[tensor.dtype]))
