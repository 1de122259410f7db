"""What the encoder is taught from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuroflamingo.findings.vocabulary import Finding
from neuroflamingo.training.embedded.dense_supervision import Totals, build_targets, dense_loss
from neuroflamingo.training.embedded.encoder_stage import draw_thickness, thick_slices
from neuroflamingo_encoders.families.tiny_t1w.network import TinyT1wEncoder


def test_thick_slices_blur_one_axis_and_keep_the_signal() -> None:
    volume = np.zeros((8, 9, 10), np.float32)
    volume[4, 4, 4] = 1.0
    blurred = {axis: 0 for axis in range(3)}
    for seed in range(30):
        out = thick_slices(volume, *draw_thickness(np.random.default_rng(seed)))
        wide = [axis for axis in range(3) if np.count_nonzero(out.sum(axis=tuple({0, 1, 2} - {axis}))) == 3]
        assert len(wide) == 1 and abs(out.sum() - 1.0) < 1e-6 and 0.5 <= out[4, 4, 4] < 1.0
        blurred[wide[0]] += 1
    assert min(blurred.values()) > 3
    even = thick_slices(np.ones((4, 4, 4), np.float32), *draw_thickness(np.random.default_rng(0)))
    np.testing.assert_allclose(even, 1.0, rtol=1e-6)


def test_the_wrong_kind_at_a_lesion_costs_more() -> None:
    torch.manual_seed(0)
    encoder = TinyT1wEncoder().eval()
    with torch.no_grad():
        readout = encoder.read(torch.zeros(1, 1, 56, 64, 56))
    finding = Finding(kind="mass", side="left", region="frontal lobe", size_mm=20)
    place = encoder.centres[40:41].numpy()
    targets = build_targets([((finding,), place)], torch.zeros(1, 4, 28, 32, 28), encoder.centres)
    kinds = []
    for kind in range(3):
        presence = readout.presence.clone()
        presence[0, 40, kind] += 4.0
        kinds.append(dense_loss(readout._replace(presence=presence), targets)[1]["kind"])
    assert min(kinds) == kinds[1]


@pytest.mark.slow
def test_the_loss_of_a_step_is_the_sum_of_its_parts() -> None:
    """However the heads of a step are shared out among micro-steps and processes; gradients too."""
    torch.manual_seed(0)
    encoder = TinyT1wEncoder().eval()
    findings = [
        (Finding(kind="mass", side="left", region="frontal lobe", size_mm=20),),
        (Finding(kind="ventricular enlargement", side="bilateral", region="lateral ventricles", grade=2),),
        (Finding(kind="chronic infarct", side="right", region="thalamus", size_mm=9),) * 2,
    ]
    places = [encoder.centres[40:41].numpy(), encoder.centres[:0].numpy(), encoder.centres[[7, 90]].numpy()]
    x, fine = torch.rand(3, 1, 56, 64, 56), (torch.rand(3, 4, 28, 32, 28) > 0.9).float()
    cases = list(zip(findings, places, strict=True))

    def losses(*parts: slice) -> tuple[float, dict[str, float], torch.Tensor]:
        targets = [build_targets(cases[part], fine[part], encoder.centres) for part in parts]
        totals = Totals(*map(sum, zip(*map(Totals.of, targets), strict=True)))
        encoder.zero_grad()
        told = [dense_loss(encoder.read(x[part]), t, totals) for part, t in zip(parts, targets, strict=True)]
        total = torch.stack([loss for loss, _ in told]).sum()
        total.backward()
        gradient = encoder.focal_head.weight.grad
        assert gradient is not None
        return (
            float(total.detach()),
            {name: sum(part[name] for _, part in told) for name in told[0][1]},
            gradient.clone(),
        )

    whole, each, gradient = losses(slice(0, 3))
    parted, parts, sum_of_gradients = losses(slice(0, 1), slice(1, 3))
    assert parted == pytest.approx(whole, rel=1e-5) and parts == pytest.approx(each, rel=1e-5)
    torch.testing.assert_close(sum_of_gradients, gradient, rtol=1e-4, atol=1e-6)
