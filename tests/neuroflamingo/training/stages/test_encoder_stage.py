"""What the encoder is taught from."""

from __future__ import annotations

import numpy as np
import torch

from neuroflamingo.findings.vocabulary import Finding
from neuroflamingo.training.embedded.encoder_stage import _thick_slices, build_targets, dense_loss
from neuroflamingo_encoders.families.tiny_t1w.network import TinyT1wEncoder


def test_thick_slices_blur_one_axis_and_keep_the_signal() -> None:
    volume = np.zeros((8, 9, 10), np.float32)
    volume[4, 4, 4] = 1.0
    blurred = {axis: 0 for axis in range(3)}
    for seed in range(30):
        out = _thick_slices(volume, np.random.default_rng(seed))
        wide = [axis for axis in range(3) if np.count_nonzero(out.sum(axis=tuple({0, 1, 2} - {axis}))) == 3]
        assert len(wide) == 1 and abs(out.sum() - 1.0) < 1e-6 and 0.5 <= out[4, 4, 4] < 1.0
        blurred[wide[0]] += 1
    assert min(blurred.values()) > 3
    np.testing.assert_allclose(_thick_slices(np.ones((4, 4, 4), np.float32), np.random.default_rng(0)), 1.0, rtol=1e-6)


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
