"""Choice of the compute device."""

from __future__ import annotations

from neuroflamingo_preprocessing.errors import UsageError


def pick_device(device: str) -> str:
    """Resolve `auto` to a GPU if there is one, else the CPU; check that any other device (`mps` on Macs) exists.

    Raises:
        UsageError: no such device.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    try:
        kind = torch.device(device)
    except RuntimeError:
        kind = None
    if kind is None or kind.type not in counts:
        raise UsageError(f"unknown device '{device}'", expected="auto, cpu, cuda[:N] or mps", seen=device)
    if (kind.index or 0) >= counts[kind.type]:
        here = [*(f"cuda:{n}" for n in range(counts["cuda"])), *["mps"] * counts["mps"]]
        raise UsageError(
            f"there is no device '{device}' here",
            expected=", ".join(["auto", "cpu", *here]),
            seen=device,
            hint="use --device auto",
        )
    return device
