"""Samples of a manifest become the very tokens and labels of upstream's training loop."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from neuroflamingo.data.manifest import Sample
from neuroflamingo.data.sequences import encode_sample
from neuroflamingo.model.tokens import END_OF_CHUNK, IMAGE


def words_of(spec) -> PreTrainedTokenizerFast:
    """A tokenizer whose word `wN` has the id N, and whose two special tokens have upstream's ids."""
    special = {spec["eoc_token_id"]: END_OF_CHUNK, spec["media_token_id"]: IMAGE}
    count = spec["tensors"]["input.embedding_loss_weight"][1][0]
    vocabulary = {special.get(number, f"w{number}"): number for number in range(count)}
    plain = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    plain.pre_tokenizer = WhitespaceSplit()
    plain.add_special_tokens([AddedToken(word, special=True) for word in special.values()])
    return PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="w0")


def test_samples_give_upstreams_tokens_and_labels(training_labels) -> None:
    spec = training_labels.spec
    tokenizer = words_of(spec)
    rows = zip(
        training_labels["input.lang_x"],
        training_labels["input.attention_mask"].bool(),
        training_labels["output.labels_interleaved_data"],
        training_labels["output.labels_pair_data"],
        strict=True,
    )
    checked = 0
    for ids, real, interleaved, pair in rows:
        count = int((ids == spec["media_token_id"]).sum())
        if not count:  # a document without a scan is no sample: nothing would be learnt
            assert bool((interleaved == -100).all())
            continue
        scans = [f"scan{number}" for number in range(count)]
        sample = Sample.model_validate(
            {"id": "a", "kind": "interleaved", "scans": scans, "text": tokenizer.decode(ids[real].tolist())}
        )
        sequence = encode_sample(sample, tokenizer)
        assert sequence.ids.equal(ids[real]) and sequence.labels.equal(interleaved[real])
        assert sequence.scans == tuple(scans)
        checked += 1
        if ids[0] == spec["media_token_id"]:
            end = ids.tolist().index(spec["eoc_token_id"]) + 1
            report = Sample(
                id="b", kind="pairs", scans=("scan",), text=str(tokenizer.decode(ids[1 : end - 1].tolist()))
            )
            sequence = encode_sample(report, tokenizer)
            assert sequence.ids.equal(ids[:end]) and sequence.labels.equal(pair[:end])
    assert checked
