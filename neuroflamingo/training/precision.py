"""Mixed precision where the hardware has it."""

from __future__ import annotations

import torch


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is native: elsewhere it is emulated, and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def autocast(device: torch.device | str, precision: str = "auto") -> torch.autocast:
    """Context in which a stage computes: `bf16`, `fp32`, or `auto`, which is bf16 where it is native."""
    device = torch.device(device)
    enabled = precision == "bf16" or (precision == "auto" and has_bfloat16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
