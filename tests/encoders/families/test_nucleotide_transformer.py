"""DNA as tokens: InstaDeep's words, both strands, padding, pooling, and a sequence behind `<image>`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import EsmConfig, EsmForMaskedLM

from neuroflamingo_encoders.families.nucleotide_transformer.network import (
    NucleotideTransformerEncoder,
    pool_windows,
    swap_strand,
)
from neuroflamingo_encoders.families.nucleotide_transformer.tokenizer import (
    partners,
    sequence_to_ids,
    sequences_to_ids,
    vocabulary,
)
from neuroflamingo_encoders.registry import encoder_card
from neuroflamingo_preprocessing.errors import ModelError, ScanError, UsageError
from tests.encoders.families.small import small
from tests.tiny import tiny_model

NAME = "nucleotide-transformer"
TEXT = "ATTCCGGATTACAGGCATGAGCCACCGTGC"  # 30 letters, five words
CONFIG = {"width": 16, "depth": 2, "heads": 2, "mlp": 32}


def encoder(seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return NucleotideTransformerEncoder(encoder_card(NAME, width=16, **options), CONFIG).freeze()


def reverse_complement(text: str) -> str:
    return text.translate(str.maketrans("ACGT", "TGCA"))[::-1]


def words(text: str) -> list[str]:
    token = {number: word for word, number in vocabulary().items()}
    return [token[number] for number in sequence_to_ids(text).tolist()]


def test_the_vocabulary_has_the_published_order() -> None:
    known = vocabulary()
    assert len(known) == 4105 == dict(encoder_card(NAME).network)["vocabulary"]
    expected = {"<unk>": 0, "<pad>": 1, "<mask>": 2, "<cls>": 3, "AAAAAA": 4, "AAAAAT": 5, "AAAAAC": 6, "AAAAAG": 7}
    expected |= {"AAAATA": 8, "GGGGGG": 4099, "A": 4100, "T": 4101, "C": 4102, "G": 4103, "N": 4104}
    assert expected.items() <= known.items()


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("ATCGAATGGCGATGCAC", "ATCGAA TGGCGA T G C A C"),
        ("ATCGAATNGGCGATGCAC", "ATCGAA T N GGCGAT G C A C"),
        ("NNATCGAAN", "N N ATCGAA N"),
        ("acgtac\n acg ", "ACGTAC A C G"),
        ("N", "N"),
    ],
)
def test_sequences_become_words_of_six(text: str, tokens: str) -> None:
    assert words(text) == ["<cls>", *tokens.split()]
    assert sequence_to_ids(text).dtype == torch.int64


@pytest.mark.parametrize(
    ("text", "seen"), [("", "an empty sequence"), (" \n", "an empty"), ("ACGU", "U"), (">chr1\nACGT", "1, >, H, R")]
)
def test_what_is_no_dna_is_refused(text: str, seen: str) -> None:
    with pytest.raises(ScanError, match="cannot be read") as caught:
        sequence_to_ids(text)
    assert seen in str(caught.value.seen) and caught.value.exit_code == 65


def test_the_longest_sequence() -> None:
    assert len(sequence_to_ids("A" * 5994)) == 1000
    with pytest.raises(ScanError, match="at most 999 tokens") as caught:
        sequence_to_ids("A" * 5995)
    assert caught.value.seen == "1000 tokens"


def test_partners_are_the_other_strands_words() -> None:
    partner = torch.tensor(partners())
    assert torch.equal(partner[partner], torch.arange(4105))
    ids = sequence_to_ids(TEXT)[None]
    assert torch.equal(swap_strand(partner[ids], ids != 1)[0], sequence_to_ids(reverse_complement(TEXT)))
    padded = sequences_to_ids([TEXT, "ACGTACT"])
    assert swap_strand(padded, padded != 1)[1].tolist() == [3, 4101, int(padded[1, 1]), 1, 1, 1]


def test_parameters_and_cost() -> None:
    card = encoder_card(NAME)
    with torch.device("meta"):
        built = NucleotideTransformerEncoder(card)
    assert sum(p.numel() for p in built.parameters()) == 478_798_080 == card.cost.parameters


def test_numbers_are_those_of_the_published_class_and_its_file_loads() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = EsmConfig(
        vocab_size=4105, max_position_embeddings=1002, pad_token_id=1, mask_token_id=2, layer_norm_eps=1e-12,
        position_embedding_type="absolute", token_dropout=False, **sizes,
    )  # fmt: skip
    torch.manual_seed(1)
    own = EsmForMaskedLM(config).eval()
    state = own.state_dict() | {"esm.embeddings.position_ids": torch.arange(1002)[None]}
    assert any(key.startswith("lm_head.") for key in state)
    target = encoder().load_weights(state)
    ids = sequences_to_ids([TEXT, TEXT[:13]])
    expected = own.esm(input_ids=ids, attention_mask=(ids != 1).long()).last_hidden_state
    torch.testing.assert_close(target(ids[None]).tokens[0], expected)
    state.pop("esm.encoder.emb_layer_norm_after.bias")
    with pytest.raises(ModelError, match="1 missing"):
        target.load_weights(state)


def test_padding_is_masked_and_changes_nothing() -> None:
    built = encoder(strand="mean")
    ids = sequences_to_ids([TEXT, TEXT[:13]])
    tokens, mask, positions = built(ids[None])
    assert tokens.shape == (1, 2, 6, 16) and positions is None
    assert mask[0].tolist() == [[True] * 6, [True] * 4 + [False] * 2]
    alone = built(sequence_to_ids(TEXT[:13])[None, None])
    torch.testing.assert_close(alone.tokens[0, 0], tokens[0, 1, :4], rtol=1e-4, atol=1e-5)
    assert small(NAME)(torch.tensor([[[3, *range(4, 15)]]])).tokens.shape == (1, 1, 12, 16)


def test_a_changed_word_changes_its_token_most() -> None:
    ids = sequence_to_ids(TEXT)[None, None]
    other = ids.clone()
    other[0, 0, 3] = 77
    for strand in ("forward", "reverse_complement", "mean"):
        built = encoder(strand=strand)
        moved = (built(other).tokens - built(ids).tokens)[0, 0].norm(dim=-1)
        assert int(moved.argmax()) == 3, strand


def test_strands() -> None:
    forward, back, mean = (encoder(strand=name) for name in ("forward", "reverse_complement", "mean"))
    ids, partner = sequence_to_ids(TEXT)[None, None], sequence_to_ids(reverse_complement(TEXT))[None, None]
    real = torch.ones(1, ids.shape[2], dtype=torch.bool)
    torch.testing.assert_close(back(ids).tokens[0], swap_strand(forward(partner).tokens[0], real))
    torch.testing.assert_close(mean(ids).tokens, (forward(ids).tokens + back(ids).tokens) / 2)
    torch.testing.assert_close(mean(partner).tokens[0], swap_strand(mean(ids).tokens[0], real))
    assert not torch.allclose(forward(ids).tokens, back(ids).tokens, atol=1e-3)


def test_windows_are_means_over_real_tokens() -> None:
    plain, pooled = encoder(), encoder(pool=2)
    ids = sequences_to_ids([TEXT, TEXT[:12]])[None]  # 5 words, and 2 with padding
    tokens, windows = plain(ids).tokens, pooled(ids)
    assert pooled.card.output.token_count({"token": 6}) == 4 == windows.tokens.shape[2]
    assert pooled.card.output.token_count({"token": 7}) == 4 and pooled.card.output.token_count({"token": 8}) == 5
    torch.testing.assert_close(windows.tokens[0, 0, 0], tokens[0, 0, 0])
    torch.testing.assert_close(windows.tokens[0, 0, 2], tokens[0, 0, 3:5].mean(0))
    torch.testing.assert_close(windows.tokens[0, 0, 3], tokens[0, 0, 5])
    assert windows.mask[0].tolist() == [[True] * 4, [True, True, False, False]]
    mean, _ = pool_windows(torch.arange(8.0).view(1, 4, 2), torch.tensor([[True, True, True, False]]), 3)
    assert mean[0, 1].tolist() == [3.0, 4.0]


@pytest.mark.parametrize("ids", [[5, 6, 7], [3, 1, 7], [3, 4105, 1], [3, -1, 1]])
def test_other_numbers_than_ids_are_refused(ids: list[int]) -> None:
    with pytest.raises(UsageError, match="not ids of DNA"):
        encoder()(torch.tensor([[ids]]))
    with pytest.raises(UsageError, match=r"float32"):
        encoder()(torch.tensor([[[3.0, 5.0, 6.0]]]))


def test_options() -> None:
    for wrong in ({"strand": "both"}, {"pool": 0}):
        with pytest.raises(ModelError, match="cannot be made"):
            encoder_card(NAME, **wrong)
    with pytest.raises(UsageError, match="does not fit"):
        encoder()(torch.full((1, 1, 1001), 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sequence_stands_behind_image(dtype: torch.dtype) -> None:
    model, processor = tiny_model(encoder=encoder())
    model = model.to(dtype)
    batch = processor(["w1 <image> w2 w3"], scans=[[sequence_to_ids(TEXT)]])
    assert batch["scans"].shape == (1, 1, 6) and batch["scans"].dtype == torch.int64
    seen = model(**batch).logits
    ready = model.encoder(batch["scans"])
    other = {k: v for k, v in batch.items() if k != "scans"}
    torch.testing.assert_close(seen, model(**other, scan_tokens=ready.tokens, token_mask=ready.mask).logits)
    batch["scans"] = sequence_to_ids("CGT" * 10)[None, None]
    assert not torch.equal(seen, model(**batch).logits)
