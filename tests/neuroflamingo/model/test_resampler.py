"""The resampler beyond the golden numbers of tests/parity: masks, independence of scans, errors."""

from __future__ import annotations

import pytest
import torch

from neuroflamingo.model.resampler import PerceiverResampler
from neuroflamingo_preprocessing.errors import UsageError
from tests.tiny import fill_by_rule

GOLDEN = 0.816750
SMALL = {"dim": 16, "depth": 2, "dim_head": 8, "heads": 2, "num_latents": 5}


def small(**changes) -> PerceiverResampler:
    resampler = PerceiverResampler(**(SMALL | changes))
    fill_by_rule(resampler)
    return resampler


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, 16, generator=torch.Generator().manual_seed(0))


def test_golden_scalars():
    """Rule-filled weights: one number that any machine reproduces."""
    x = torch.sin(torch.arange(2 * 1 * 1 * 6 * 16, dtype=torch.float32)).view(2, 1, 1, 6, 16)
    latents = small()(x)
    assert latents.shape == (2, 1, 5, 16)
    assert latents.abs().mean().item() == pytest.approx(GOLDEN, abs=1e-5)


def test_masked_tokens_get_no_attention():
    resampler, x = small(), tokens(2, 3, 1, 7)
    mask = torch.ones(2, 3, 1, 7, dtype=torch.bool)
    mask[0, 1, 0, 4:] = False
    seen = resampler(x, mask)
    torch.testing.assert_close(seen[0, 1], resampler(x[:1, 1:2, :, :4])[0, 0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(seen[1], resampler(x)[1], atol=1e-6, rtol=1e-6)
    changed = x.clone()
    changed[0, 1, 0, 4:] = 100.0
    assert torch.equal(seen, resampler(changed, mask))


def test_scans_do_not_see_each_other():
    resampler, x = small(), tokens(2, 3, 2, 7)
    together = resampler(x)
    for scan in range(3):
        torch.testing.assert_close(resampler(x[:, scan : scan + 1])[:, 0], together[:, scan], atol=1e-6, rtol=1e-6)


def test_every_parameter_gets_a_gradient():
    resampler = small(max_num_media=3, max_num_frames=2)
    resampler(tokens(2, 3, 2, 7)).square().sum().backward()
    for name, parameter in resampler.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(("axis", "argument"), [(1, "max_num_media"), (2, "max_num_frames")])
def test_more_than_there_are_embeddings_for(axis, argument):
    resampler = small(**{argument: 2})
    shape = [1, 1, 1, 7]
    shape[axis] = 3
    with pytest.raises(UsageError, match=rf"at most 2 \({argument}\)"):
        resampler(tokens(*shape))


def test_the_settings_build_it_again():
    resampler = small(max_num_media=3, ff_mult=2)
    again = PerceiverResampler(**resampler.settings)
    assert again.settings == resampler.settings
    again.load_state_dict(resampler.state_dict())


def test_upstreams_defaults():
    assert PerceiverResampler(dim=8).settings == {
        "dim": 8,
        "depth": 6,
        "dim_head": 64,
        "heads": 8,
        "num_latents": 64,
        "max_num_media": None,
        "max_num_frames": None,
        "ff_mult": 4,
    }
