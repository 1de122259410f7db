"""The resampler against upstream's numbers: outputs and gradients."""

from __future__ import annotations

import torch

from neuroflamingo.model.resampler import PerceiverResampler


def test_outputs_and_gradients(perceiver):
    resampler = PerceiverResampler(**perceiver.spec["config"])
    resampler.load_state_dict(perceiver.under("state."))
    x = perceiver["input.x"].requires_grad_()
    latents = resampler(x)
    torch.testing.assert_close(latents, perceiver["output.latents"], atol=1e-5, rtol=1e-5)
    (latents * perceiver["input.grad_output"]).sum().backward()
    torch.testing.assert_close(x.grad, perceiver["grad.x"], atol=1e-4, rtol=1e-4)
    parameters = dict(resampler.named_parameters())
    golden = {name: value for name, value in perceiver.under("grad.").items() if name != "x"}
    assert "latents" in golden
    for name, value in golden.items():
        torch.testing.assert_close(parameters[name].grad, value, atol=1e-4, rtol=1e-4, msg=f"gradient of {name}")
