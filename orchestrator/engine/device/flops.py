"""Model FLOPs utilisation: counted work over what the GPU could do at best. Imports: torch.

MFU as Chowdhery et al. 2022 (PaLM, appendix B) define it: the model's own floating-point operations, without
what is computed again, per second, over the peak of the number format.
"""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from orchestrator.engine.device.precision import Precision

_PEAK_TFLOPS: dict[str, dict[str, float]] = {
    # Dense figures of NVIDIA's data sheets, without sparsity: tensor cores, and fp32 without them.
    "B200": {"bf16": 2250.0, "fp16": 2250.0, "tf32": 1125.0, "fp32": 75.0},
    "H200": {"bf16": 989.4, "fp16": 989.4, "tf32": 494.7, "fp32": 66.9},
    "H100": {"bf16": 989.4, "fp16": 989.4, "tf32": 494.7, "fp32": 66.9},
    "A100": {"bf16": 312.0, "fp16": 312.0, "tf32": 156.0, "fp32": 19.5},
    "L40S": {"bf16": 362.0, "fp16": 362.0, "tf32": 183.0, "fp32": 91.6},
    "L4": {"bf16": 121.0, "fp16": 121.0, "tf32": 60.0, "fp32": 30.3},
    "A10": {"bf16": 125.0, "fp16": 125.0, "tf32": 62.5, "fp32": 31.2},
    "V100": {"fp16": 125.0, "fp32": 15.7},
    "T4": {"fp16": 65.0, "fp32": 8.1},
}


def peak_flops(device: torch.device, precision: Precision) -> float | None:
    """The device's best FLOP/s in this format; None where it is not known (and for CPUs)."""
    if device.type != "cuda":
        return None
    words = torch.cuda.get_device_name(device).replace("-", " ").split()
    known = next((peaks for name, peaks in _PEAK_TFLOPS.items() if name in words), {})
    tflops = known.get(precision.name)
    return tflops * 1e12 if tflops else None


def forward_flops(model: torch.nn.Module, inputs: torch.Tensor) -> float:
    """FLOPs of one forward pass over the batch; a multiply-add counts as two."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(inputs)
    return float(counter.get_total_flops())
