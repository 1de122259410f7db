"""The rule of OpenFlamingo v1 and Multimodal-GPT: text looks at the next scan."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroflamingo.model.media import allowed_scans, make_plan, media_time
from tests.tiny import tiny_batch, tiny_model, tiny_scans

IMAGE = 62


def upstream(row: list[bool], immediate: bool) -> list[set[int]]:
    """Which scans each token sees, token by token, as v1 says it."""
    seen, count = [], 0
    for image in row:
        count += image
        time = count if image else count + 1
        time = 0 if time > sum(row) else time
        seen.append({scan for scan in range(1, sum(row) + 1) if (time == scan if immediate else time >= scan)})
    return seen


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=9), st.booleans())
def test_each_token_sees_what_upstream_lets_it_see(row, immediate):
    images = torch.tensor([row])
    ordinal = torch.arange(1, sum(row) + 1)[None]
    time = media_time(images, "next")
    allowed = allowed_scans(time, ordinal, immediate)[0]
    assert [{scan + 1 for scan, yes in enumerate(token) if yes} for token in allowed.tolist()] == upstream(
        row, immediate
    )
    plan = make_plan(time, ordinal, immediate)
    visible = torch.ones_like(images) if plan.visible is None else plan.visible
    if plan.kind != "none":
        assert torch.equal(visible[0], allowed.any(-1))
    assert (plan.kind == "none") == (not allowed.any())


@pytest.mark.parametrize("immediate", [True, False])
def test_text_after_the_last_image_sees_nothing_and_text_before_one_sees_it(immediate):
    model, _ = tiny_model("llama", only_attend_immediate_media=immediate)
    ids, tokens = torch.tensor([[1, 2, IMAGE, 3, IMAGE, 4, 5]]), tiny_scans(1, 2)
    for rule, where in (("next", [0, 1, 2, 3, 4]), ("previous", [2, 3, 4, 5, 6])):
        model.config.cross_attention["media_rule"] = rule
        looked = model.attention_rollout(ids, scan_tokens=tokens).sum((-1, -2))[0]
        assert looked.nonzero()[:, 0].tolist() == where
    first = model.attention_rollout(ids, scan_tokens=tokens)
    model.config.cross_attention["media_rule"] = "next"
    second = model.attention_rollout(ids, scan_tokens=tokens)
    assert first[0, 3, 0].any() and second[0, 3, 1].any()


def test_an_argument_of_the_call_goes_before_the_config():
    model, processor = tiny_model("llama")
    batch = tiny_batch(processor)
    with torch.no_grad():
        both = [model(**batch, media_shift=shift).logits for shift in ("previous", "next")]
        assert not torch.allclose(*both, atol=1e-3)
        assert torch.equal(model(**batch).logits, both[0])
        model.config.cross_attention["media_rule"] = "next"
        assert torch.equal(model(**batch).logits, both[1])
        assert torch.equal(model(**batch, media_shift="previous").logits, both[0])


@pytest.mark.parametrize("family", ["llama", "gptj"])
@pytest.mark.parametrize("how", [{}, {"num_beams": 2}, {"use_cache": False}])
def test_what_is_written_sees_no_scan(family, how):
    """With and without a cache: after the last `<image>` there is no next scan."""
    model, processor = tiny_model(family)
    batch = tiny_batch(processor)
    wanted = {"max_new_tokens": 5, "do_sample": False}
    written = model.generate(**batch, media_shift="next", **wanted, **how)
    model.config.cross_attention["media_rule"] = "next"
    assert torch.equal(model.generate(**batch, **wanted, **how), written)
    ids, new = written, batch["input_ids"].shape[1]
    with torch.no_grad():
        mask = torch.cat((batch["attention_mask"], torch.ones(2, ids.shape[1] - new, dtype=torch.long)), dim=1)
        scores = model(**batch | {"input_ids": ids, "attention_mask": mask}, use_cache=False).logits
    if "num_beams" not in how:
        never = scores[:, new - 1 : -1].index_fill(-1, torch.tensor(IMAGE), float("-inf"))
        assert torch.equal(never.argmax(-1), ids[:, new:])
