"""Mixed precision is used where the hardware has it."""

from __future__ import annotations

import pytest
import torch

from neuroflamingo.training import precision


@pytest.mark.parametrize(("wish", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_what_is_asked_for_is_used(wish: str, dtype: torch.dtype) -> None:
    with precision.autocast("cpu", wish):
        assert torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3)).dtype == dtype


@pytest.mark.parametrize("native", [True, False])
def test_auto_follows_the_processor(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native, "amx_bf16": False})
    with precision.autocast(torch.device("cpu")):
        out = torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3))
    assert out.dtype == (torch.bfloat16 if native else torch.float32)
