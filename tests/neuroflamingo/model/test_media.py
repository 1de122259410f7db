"""Media: frozen, carried by the call, gone after it."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroflamingo.model.media import (
    NO_MEDIA,
    Media,
    Plan,
    allowed_scans,
    check_count,
    current_media,
    make_plan,
    media_scope,
)
from neuroflamingo_preprocessing.errors import UsageError


def test_media_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        NO_MEDIA.latents = torch.zeros(1)  # pyright: ignore[reportAttributeAccessIssue]


def test_a_scope_ends_with_its_block_even_when_it_raises():
    media = Media(Plan("none"))
    with pytest.raises(KeyError), media_scope(media):
        assert current_media() is media
        raise KeyError
    assert current_media() is None


def test_a_scope_belongs_to_its_thread():
    seen = []
    with media_scope(NO_MEDIA):
        thread = threading.Thread(target=lambda: seen.append(current_media()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_counts_that_do_not_fit_name_the_row():
    images = torch.tensor([1, 2])
    check_count(images, 2)
    check_count(images, images, exact=True)
    with pytest.raises(UsageError, match="row 1 of the batch has 2 <image> tokens and 1 scans"):
        check_count(images, 1)
    with pytest.raises(UsageError, match="row 0 of the batch has 1 <image> tokens and 2 scans"):
        check_count(images, 2, exact=True)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=3),
    st.booleans(),
    st.integers(0, 2),
)
def test_every_plan_allows_exactly_the_allowed_scans(rows, immediate, extra):
    """Whatever the plan, attention over one-hot values returns the average of the allowed scans' numbers."""
    from torch.nn.functional import one_hot

    from neuroflamingo.model.gated_attention import MaskedCrossAttention, split_heads

    images = torch.tensor(rows)
    time, count = images.long().cumsum(-1), images.sum(-1)
    scans = int(count.max()) + extra
    if scans == 0:
        return
    place = torch.arange(1, scans + 1)
    ordinal = torch.where(place <= count[:, None], place, 0)
    plan = make_plan(time, ordinal, immediate)
    allowed = allowed_scans(time, ordinal, immediate)
    if plan.kind == "none":
        assert not allowed.any()
        return
    latents = one_hot(torch.arange(scans), scans).float()[None, :, None].expand(len(rows), -1, 2, -1)
    values = split_heads(plan.select(latents), 1)
    queries = torch.zeros(len(rows), 1, 9, scans)
    read = MaskedCrossAttention._attend(queries, torch.zeros_like(values), values, plan)[:, 0]
    if plan.visible is not None:
        read = read.masked_fill(~plan.visible[..., None], 0.0)
    expected = allowed / allowed.sum(-1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(read, expected.float(), atol=1e-6, rtol=1e-6)
