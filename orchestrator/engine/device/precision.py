"""The number format of the computation: autocast, loss scaling, matrix-product settings. Imports: torch.

Weights, gradients and optimizer state stay fp32; only the forward pass (and so the backward) runs lower.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Literal

import torch

from orchestrator.errors import UsageError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """A resolved `train.precision` on one kind of device."""

    name: Literal["fp32", "tf32", "bf16", "fp16"]
    device_type: str

    @property
    def dtype(self) -> torch.dtype | None:
        """What autocast computes in; None where there is none."""
        return _DTYPES.get(self.name)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The context of a forward pass and its loss."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, dtype=self.dtype)

    def scaler(self) -> torch.amp.GradScaler | None:
        """The loss scaler that fp16's small range needs (Micikevicius et al. 2018); None elsewhere."""
        return torch.amp.GradScaler(self.device_type) if self.name == "fp16" else None


def resolve_precision(name: str, device: torch.device) -> Precision:
    """What `train.precision` means on this device, with torch's global matrix-product setting made to fit.

    `auto` is bf16 where the device computes it natively, else fp32. Raises UsageError where the device cannot.
    """
    kind = device.type
    if name == "auto":
        name = "bf16" if native_bf16(device) else "fp32"
    if name == "tf32" and kind != "cuda":
        raise UsageError(
            f"train.precision: tf32 is a format of NVIDIA GPUs, and this worker runs on {kind}",
            "write fp32, bf16 or auto",
        )
    if name == "bf16" and kind == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UsageError(
            f"train.precision: {torch.cuda.get_device_name(device)} does not compute bf16",
            "write fp16 or auto",
        )
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    if kind == "cuda":
        torch.backends.cudnn.allow_tf32 = name == "tf32"
    return Precision(name, kind)  # type: ignore[arg-type]


def native_bf16(device: torch.device) -> bool:
    """Whether bf16 is computed by the hardware, and so is faster than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()
    return device.type == "cpu" and any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
