"""Generation: scans projected once, riding on the cache through every way of decoding; scoring of candidate texts."""

from __future__ import annotations

import copy

import pytest
import torch

from neuroflamingo.model.gated_attention import MaskedCrossAttention
from neuroflamingo.model.media_cache import MediaCache, find_media_cache
from neuroflamingo_preprocessing.errors import UsageError
from tests.tiny import tiny_batch, tiny_model, tiny_scans

IMAGE, NEW = 62, 8
WAYS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 5},
    "beams": {"num_beams": 3, "do_sample": False},
    "beams, several sequences": {"num_beams": 3, "num_return_sequences": 2, "do_sample": False},
    "sampling, several sequences": {"do_sample": True, "num_return_sequences": 3},
    "beam sampling": {"num_beams": 2, "do_sample": True},
    "static cache": {"do_sample": False, "cache_implementation": "static"},
}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", params=[True, False], ids=["immediate", "all previous"])
def fused(request):
    return tiny_model("llama", only_attend_immediate_media=request.param)


def write(model, batch, **how):
    torch.manual_seed(0)
    return model.generate(**batch, max_new_tokens=NEW, **how)


@pytest.mark.parametrize("way", WAYS)
def test_cached_and_uncached_ids_are_equal(fused, way):
    model, processor = fused
    batch, how = tiny_batch(processor), WAYS[way]
    cached = write(model, batch, **how)
    uncached = write(model, batch, **{k: v for k, v in how.items() if k != "cache_implementation"}, use_cache=False)
    assert torch.equal(cached, uncached)
    assert not torch.equal(cached, write(model, tiny_batch(processor, seed=3), **how))


def test_a_row_alone_gives_what_it_gives_in_a_batch(fused):
    """Left padding and padded scans change nothing."""
    model, processor = fused
    batch = tiny_batch(processor)
    together = write(model, batch, do_sample=False)
    for row, images in enumerate((2, 1)):
        start = int((batch["attention_mask"][row] == 0).sum())
        tokens = batch["scan_tokens"][row : row + 1, :images]
        alone = write(model, {"input_ids": batch["input_ids"][row : row + 1, start:], "scan_tokens": tokens})
        assert torch.equal(alone[0], together[row, start:])


def test_keys_and_values_are_computed_once_per_scan(fused, monkeypatch):
    model, processor = fused
    scans = []
    project = MaskedCrossAttention.project
    monkeypatch.setattr(MaskedCrossAttention, "project", lambda self, x: scans.append(x.shape[0]) or project(self, x))
    write(model, tiny_batch(processor), num_beams=3, num_return_sequences=3)
    assert scans == [2] * len(model.gated_blocks)  # one batch of two prompts for each block, no beams


def test_only_the_last_scan_is_scored_while_decoding():
    model, processor = tiny_model("llama")
    batch = tiny_batch(processor)
    cache = model(**batch, use_cache=True).past_key_values
    media = find_media_cache(cache).open(torch.zeros(2, 1, dtype=torch.bool))
    assert media.plan.kind == "one"
    assert {keys.shape[2] for keys, _ in media.keys_values.values()} == {5}


def test_an_image_token_is_never_written(fused, monkeypatch):
    model, processor = fused
    bias = torch.zeros(64)
    bias[IMAGE] = 100.0
    head = model.lang_encoder.lm_head.forward
    monkeypatch.setattr(model.lang_encoder.lm_head, "forward", lambda x: head(x) + bias)
    batch = tiny_batch(processor)
    assert int(model(**batch).logits[0, -1].argmax()) == IMAGE
    assert IMAGE not in write(model, batch)[:, batch["input_ids"].shape[1] :]


def test_chunked_prefill_equals_whole_prefill(fused):
    model, processor = fused
    batch = tiny_batch(processor)
    whole = model(**batch, use_cache=True).logits
    for size in (1, 3, 4):
        cache, parts = None, []
        for start in range(0, whole.shape[1], size):
            chunk = slice(start, start + size)
            scans = {k: batch[k] for k in ("scan_tokens", "scan_mask")} if start == 0 else {}
            out = model(
                batch["input_ids"][:, chunk],
                batch["attention_mask"][:, : start + size],
                **scans,
                past_key_values=cache,
                use_cache=True,
            )
            cache = out.past_key_values
            parts.append(out.logits)
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)
    assert torch.equal(write(model, batch), write(model, batch, prefill_chunk_size=3))


def test_a_new_image_in_a_later_chunk_of_one_row_leaves_the_others_alone(fused):
    model, _ = fused
    first = torch.tensor([[IMAGE, 1, 2], [IMAGE, 3, 4]])
    later = torch.tensor([[5, IMAGE, 6], [7, 8, 9]])
    scans = tiny_scans(2, 2)
    there = torch.tensor([[True], [False]])
    cache = model(first, scan_tokens=scans[:, :1], use_cache=True).past_key_values
    out = model(later, scan_tokens=scans[:, 1:], scan_mask=there, past_key_values=cache, use_cache=True)
    last = model(torch.tensor([[10], [11]]), past_key_values=out.past_key_values).logits
    ids = torch.cat((first, later, torch.tensor([[10], [11]])), dim=1)
    for row, images in enumerate((2, 1)):
        whole = model(ids[row : row + 1], scan_tokens=scans[row : row + 1, :images]).logits[0]
        torch.testing.assert_close(torch.cat((out.logits[row], last[row])), whole[3:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("numbered", [None, 3], ids=["unnumbered", "numbered"])
@pytest.mark.parametrize("immediate", [True, False], ids=["immediate", "all previous"])
def test_a_later_turn_with_new_scans_gives_what_one_prompt_gives(immediate, numbered):
    """Rows with unequal numbers of scans, so that the third turn's are the second of one row, the third of another."""
    resampler = {"dim": 16, "depth": 1, "num_latents": 5, "heads": 2, "dim_head": 8, "max_num_media": numbered}
    model, _ = tiny_model("llama", only_attend_immediate_media=immediate, resampler=resampler)
    turns = [[[IMAGE, 1, 2], [IMAGE, 3, 4]], [[5, IMAGE, 6], [7, 8, 9]], [[10, IMAGE, 11], [12, IMAGE, 13]]]
    scans, has = tiny_scans(2, 3), [[True, True], [True, False], [True, True]]
    cache, parts = None, []
    for turn, ids in enumerate(torch.tensor(turns)):
        there = torch.tensor(has[turn])[:, None]
        given = {"scan_tokens": scans[:, turn, None], "scan_mask": there, "past_key_values": cache}
        out = model(ids, **given, use_cache=True)
        cache, parts = out.past_key_values, [*parts, out.logits]
    asked = torch.cat((*map(torch.tensor, turns), torch.tensor([[14], [15]])), dim=1)
    told = write(model, {"input_ids": asked}, past_key_values=cache)[:, asked.shape[1] :]
    for row in range(2):
        ids = asked[row : row + 1, :-1]
        own = scans[row : row + 1, [turn for turn in range(3) if has[turn][row]]]
        whole = model(ids, scan_tokens=own).logits[0]
        torch.testing.assert_close(torch.cat([part[row] for part in parts]), whole, atol=1e-5, rtol=1e-5)
        after = write(model, {"input_ids": asked[row : row + 1], "scan_tokens": own})[:, asked.shape[1] :]
        assert torch.equal(told[row], after[0])


def test_more_scans_in_all_turns_than_there_are_numbers_for():
    resampler = {"dim": 16, "depth": 1, "num_latents": 5, "heads": 2, "dim_head": 8, "max_num_media": 2}
    model, _ = tiny_model("llama", resampler=resampler)
    ids, scans = torch.tensor([[IMAGE, 1, IMAGE, 2]]), tiny_scans(1, 3)
    cache = model(ids, scan_tokens=scans[:, :2], use_cache=True).past_key_values
    with pytest.raises(UsageError, match=r"(?s)at most 2 \(max_num_media\).*seen: 3"):
        model(ids[:, :2], scan_tokens=scans[:, 2:], past_key_values=cache, use_cache=True)


def test_slots_left_empty_before_a_scan_do_not_count_as_scans():
    resampler = {"dim": 16, "depth": 1, "num_latents": 5, "heads": 2, "dim_head": 8, "max_num_media": 3}
    model, _ = tiny_model("llama", resampler=resampler)
    ids, scans = torch.tensor([[IMAGE, 1, 2]]), tiny_scans(1, 3)
    batch = {"input_ids": ids, "scan_tokens": scans, "scan_mask": torch.tensor([[False, False, True]])}
    alone = {"input_ids": ids, "scan_tokens": scans[:, 2:]}
    torch.testing.assert_close(model(**batch).logits, model(**alone).logits, atol=1e-5, rtol=1e-5)
    looked = model.attention_rollout(**batch)[:, :, 2]
    torch.testing.assert_close(looked, model.attention_rollout(**alone)[:, :, 0], atol=1e-5, rtol=1e-5)


def test_scans_may_join_a_text_that_began_without_any(fused):
    model, _ = fused
    ids, scans = torch.tensor([[1, 2, 3, IMAGE, 4]]), tiny_scans(1, 1)
    cache = model(ids[:, :3], use_cache=True).past_key_values
    later = model(ids[:, 3:], scan_tokens=scans, past_key_values=cache, use_cache=True)
    whole = model(ids, scan_tokens=scans).logits
    torch.testing.assert_close(later.logits, whole[:, 3:], atol=1e-5, rtol=1e-5)


def test_generation_goes_on_from_a_cache(fused):
    model, processor = fused
    batch = tiny_batch(processor)
    expected = write(model, batch, do_sample=False)
    cache = model(
        batch["input_ids"][:, :-1],
        batch["attention_mask"][:, :-1],
        position_ids=(batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)[:, :-1],  # as generate counts them
        scan_tokens=batch["scan_tokens"],
        scan_mask=batch["scan_mask"],
        use_cache=True,
    ).past_key_values
    text = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    assert torch.equal(write(model, text, past_key_values=copy.deepcopy(cache), do_sample=False), expected)
    with pytest.raises(UsageError, match="new scans cannot be added"):
        write(model, batch, past_key_values=cache)


def test_the_cache_layer_follows_every_operation():
    """Reordering, repeating, selecting and cropping a cache keep each row with its own scans."""
    model, processor = tiny_model("llama")
    batch = tiny_batch(processor)
    cache = model(**batch, use_cache=True).past_key_values
    assert isinstance(cache.layers[-1], MediaCache)
    new, mask = torch.tensor([[3], [4]]), torch.cat((batch["attention_mask"], torch.ones(2, 1, dtype=torch.long)), 1)
    expected = model(new, mask, past_key_values=copy.deepcopy(cache)).logits
    index = torch.tensor([1, 0, 1])
    for change in ("reorder_cache", "batch_select_indices"):
        moved = copy.deepcopy(cache)
        getattr(moved, change)(index)
        seen = model(new[index], mask[index], past_key_values=moved).logits
        torch.testing.assert_close(seen, expected[index], atol=1e-6, rtol=1e-6)
    repeated = copy.deepcopy(cache)
    repeated.batch_repeat_interleave(2)
    rows = torch.tensor([0, 0, 1, 1])
    seen = model(new[rows], mask[rows], past_key_values=repeated).logits
    torch.testing.assert_close(seen, expected[rows], atol=1e-6, rtol=1e-6)


def test_cropping_forgets_the_images_that_were_cropped():
    model, _ = tiny_model("llama")
    scans = tiny_scans(1, 2)
    ids = torch.tensor([[IMAGE, 1, 2, IMAGE, 3]])
    cache = model(ids, scan_tokens=scans, use_cache=True).past_key_values
    cache.crop(-3)
    again = torch.tensor([[4, 5]])
    seen = model(again, past_key_values=cache).logits
    whole = model(torch.tensor([[IMAGE, 1, 4, 5]]), scan_tokens=scans[:, :1]).logits
    torch.testing.assert_close(seen, whole[:, 2:], atol=1e-5, rtol=1e-5)


def test_resetting_a_cache_forgets_its_scans():
    model, _ = tiny_model("llama")
    cache = model(torch.tensor([[IMAGE, 1]]), scan_tokens=tiny_scans(1, 1), use_cache=True).past_key_values
    cache.reset()
    seen = model(torch.tensor([[IMAGE, 1]]), scan_tokens=tiny_scans(1, 1, seed=2), past_key_values=cache).logits
    fresh = model(torch.tensor([[IMAGE, 1]]), scan_tokens=tiny_scans(1, 1, seed=2)).logits
    torch.testing.assert_close(seen, fresh, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("prompt", "scans", "message"),
    [
        (torch.zeros(1, 0, dtype=torch.long), None, "the prompt is empty"),
        (torch.tensor([[1, 2]]), 1, "0 <image> tokens and 1 scans"),
        (torch.tensor([[IMAGE, IMAGE, 2]]), 1, "2 <image> tokens and 1 scans"),
        (torch.tensor([[IMAGE, 2]]), 2, "1 <image> tokens and 2 scans"),
        (torch.tensor([[IMAGE, 2]]), None, "1 <image> tokens and 0 scans"),
    ],
    ids=["empty", "no image", "more images", "more scans", "no scans"],
)
def test_prompts_and_scans_that_do_not_fit(fused, prompt, scans, message):
    model, _ = fused
    given = {} if scans is None else {"scan_tokens": tiny_scans(1, scans)}
    for call in (model, lambda ids, **how: model.generate(ids, max_new_tokens=2, **how)):
        with pytest.raises(UsageError, match=message):
            call(prompt, **given)


def test_text_alone_is_read_as_text_before_the_first_scan_is(fused):
    model, _ = fused
    ids = torch.tensor([[1, 2, 3]])
    alone = model(ids).logits
    before = model(torch.tensor([[1, 2, 3, IMAGE]]), scan_tokens=tiny_scans(1, 1)).logits[:, :3]
    torch.testing.assert_close(alone, before, atol=1e-6, rtol=1e-6)
    assert model.generate(ids, max_new_tokens=2).shape == (1, 5)


def test_only_the_last_position_is_turned_into_logits_when_asked(fused):
    model, processor = fused
    batch = tiny_batch(processor)
    whole = model(**batch).logits
    torch.testing.assert_close(model(**batch, logits_to_keep=1).logits, whole[:, -1:], atol=1e-6, rtol=1e-6)


CANDIDATES = [[4], [5, 6, 7], [4, 9], [8, 8, 8, 8]]


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bloom"])
def test_candidates_together_score_as_each_alone(family, chunk):
    model, processor = tiny_model(family)
    batch = tiny_batch(processor)
    scores = model.score_texts(candidates=CANDIDATES, chunk=chunk, **batch)
    assert scores.mean.shape == (2, 4)
    for row, images in enumerate((2, 1)):
        start = int((batch["attention_mask"][row] == 0).sum())
        context = batch["input_ids"][row : row + 1, start:]
        for number, candidate in enumerate(CANDIDATES):
            ids = torch.cat((context, torch.tensor([candidate])), dim=1)
            logits = model(ids, scan_tokens=batch["scan_tokens"][row : row + 1, :images]).logits.log_softmax(-1)
            alone = sum(float(logits[0, context.shape[1] - 1 + n, token]) for n, token in enumerate(candidate))
            assert float(scores.sum[row, number]) == pytest.approx(alone, abs=1e-4)
            assert float(scores.mean[row, number]) == pytest.approx(alone / len(candidate), abs=1e-4)


def test_candidates_as_texts(fused):
    model, processor = fused
    batch = tiny_batch(processor)
    texts = model.score_texts(candidates=["w4", "w5 w6 w7"], tokenizer=processor.tokenizer, **batch)
    assert torch.equal(texts.sum, model.score_texts(candidates=[[4], [5, 6, 7]], **batch).sum)
    for wrong in ([], [[]], [[IMAGE]], ["w1"], "w1"):
        with pytest.raises(UsageError):
            model.score_texts(candidates=wrong, **batch)
