"""Choice of the compute device."""

from __future__ import annotations

from neuroflamingo_preprocessing.errors import UsageError


def pick_device(device: str) -> str:
    """Resolve `auto` to the best available device, and check that any other device exists.

    Raises:
        UsageError: no such device.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"unknown device '{device}'", expected="auto, cpu or cuda[:N]", seen=device) from error
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"there is no device '{device}' here",
            expected="auto, cpu" + "".join(f", cuda:{n}" for n in range(torch.cuda.device_count())),
            seen=device,
            hint="use --device auto",
        )
    return device
