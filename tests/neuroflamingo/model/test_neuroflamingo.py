"""The whole model: loss, what trains, encoders, where it looked."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neuroflamingo.model.attribution import norm_weighted
from neuroflamingo.model.neuroflamingo import NeuroFlamingo
from neuroflamingo.model.resampler import PerceiverResampler
from neuroflamingo_encoders import BrainEncoder, build_encoder
from neuroflamingo_encoders.contract import EncoderOutput
from neuroflamingo_encoders.families.precomputed.cards import precomputed_card
from neuroflamingo_preprocessing.errors import UsageError
from tests.tiny import (
    TOKENS,
    WIDTH,
    fill_by_rule,
    tiny_batch,
    tiny_language_model,
    tiny_model,
    tiny_scans,
    tiny_tokenizer,
)

IMAGE, END = 62, 61


class CountingEncoder(BrainEncoder):
    """A trainable projection that counts the scans it sees and drops out in training; the last token is padding."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__(precomputed_card(width=width, tokens=TOKENS))
        self.layer = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.5)
        self.seen = 0
        fill_by_rule(self)

    def forward(self, x: Tensor) -> EncoderOutput:
        self.seen += x.shape[0] * x.shape[1]
        mask = torch.ones(x.shape[:3], dtype=torch.bool)
        mask[:, :, -1] = False
        return EncoderOutput(self.dropout(self.layer(x)), mask)


@pytest.fixture(scope="module")
def fused():
    return tiny_model("llama")


def test_the_loss_is_the_mean_over_the_labels(fused):
    model, processor = fused
    batch = tiny_batch(processor, padding_side="right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[0, :3] = -100
    out = model(**batch, labels=labels)
    expected = cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(out.loss, expected)
    summed = model(**batch, labels=labels, num_items_in_batch=5).loss
    torch.testing.assert_close(summed, expected * int((labels[:, 1:] != -100).sum()) / 5)


def test_logits_at_labelled_positions_only_give_the_same_loss_and_gradients(fused):
    model, processor = fused
    batch = tiny_batch(processor, padding_side="right")
    labels = torch.full_like(batch["input_ids"], -100)
    labels[0, 5], labels[1, 3] = 4, 9
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(0))
    results = []
    for loss_only in (False, True):
        model.zero_grad()
        out = model(**batch, labels=labels, loss_weights=weights, loss_only=loss_only)
        out.loss.backward()
        assert (out.logits is None) == loss_only
        results.append((out.loss, *(p.grad for p in model.parameters() if p.requires_grad)))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two)


def test_label_weights_make_a_weighted_mean(fused):
    model, processor = fused
    batch = tiny_batch(processor, padding_side="right")
    labels = torch.full_like(batch["input_ids"], -100)
    labels[0, 3], labels[0, 5] = 4, 9
    weights = torch.ones(labels.shape)
    weights[0, 5] = 3.0
    out = model(**batch, labels=labels, label_weights=weights)
    scores = -out.logits.log_softmax(-1)
    torch.testing.assert_close(out.loss, (scores[0, 2, 4] + 3 * scores[0, 4, 9]) / 4)


def test_no_label_at_all_is_a_loss_of_zero(fused):
    model, processor = fused
    batch = tiny_batch(processor)
    for loss_only in (False, True):
        loss = model(**batch, labels=torch.full_like(batch["input_ids"], -100), loss_only=loss_only).loss
        assert float(loss.detach()) == 0.0


def test_what_trains_after_assembling():
    model, _ = tiny_model("llama", encoder=CountingEncoder())
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    embeddings = {"new_tokens.input", "new_tokens.output"}
    added = {n for n, _ in model.named_parameters() if n.startswith("perceiver.") or "gated_cross_attn_layer" in n}
    assert trains == embeddings | added and len(added) > 40


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_of_the_embeddings_only_the_new_rows_train(family):
    model, processor = tiny_model(family)
    model = copy.deepcopy(model)  # a copy has to keep to this as well
    model.train()
    batch = tiny_batch(processor, padding_side="right")
    model(**batch, labels=batch["input_ids"]).loss.backward()
    rows = list(model.new_tokens.parameters())
    assert len(rows) == (1 if family == "gpt2" else 2)  # GPT-2 ties them
    assert model.new_tokens.ids.tolist() == [END, IMAGE] and all(row.grad[1].any() for row in rows)
    model.freeze_for_training(embeddings="all").zero_grad()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    assert model.lang_encoder.get_input_embeddings().weight.grad[5].any()
    model.freeze_for_training(embeddings="none").zero_grad()
    assert not model.lang_encoder.get_input_embeddings().weight.requires_grad


def test_frozen_parts_stay_in_eval_mode():
    model, processor = tiny_model("gpt2", encoder=CountingEncoder(), changes={"resid_pdrop": 0.5, "embd_pdrop": 0.5})
    batch = tiny_batch(processor)
    batch["scans"] = batch.pop("scan_tokens")
    model.eval()
    with torch.no_grad():
        expected = model(**batch).logits
    model.train()
    assert not model.encoder.training and model.perceiver.training
    assert all(block.training for block in model.gated_blocks.values())
    assert not any(module.training for module in model.lang_encoder.modules() if isinstance(module, nn.Dropout))
    torch.testing.assert_close(model(**batch).logits, expected)
    model.lang_encoder.requires_grad_(True)
    model.train()
    assert all(module.training for module in model.lang_encoder.modules() if isinstance(module, nn.Dropout))


def test_an_encoder_sees_each_real_scan_once_and_its_mask_is_kept():
    encoder = CountingEncoder()
    model, processor = tiny_model("llama", encoder=encoder)
    batch = tiny_batch(processor)
    scans = batch.pop("scan_tokens")
    with torch.no_grad():
        out = model(**batch, scans=scans)
        assert encoder.seen == 3  # of four slots
        tokens, kept = encoder.layer(scans), torch.tensor([[1, 1], [1, 0]], dtype=torch.bool)
        expected = model.perceiver(tokens[:, :, None, :-1])
    torch.testing.assert_close(out.latents[kept], expected[kept])
    assert not out.latents[~kept].any()
    encoder.seen = 0
    model.generate(**batch, scans=scans, max_new_tokens=4, num_beams=2)
    assert encoder.seen == 3


def test_a_frozen_encoder_keeps_no_graph_and_an_open_one_trains():
    encoder = CountingEncoder()
    model, processor = tiny_model("llama", encoder=encoder)
    batch = tiny_batch(processor, padding_side="right")
    batch["scans"] = batch.pop("scan_tokens")
    model.train()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    assert encoder.layer.weight.grad is None
    encoder.requires_grad_(True)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    assert encoder.layer.weight.grad.any()


def test_frames_are_resampled_together(fused):
    model, _ = fused
    frames = torch.randn(1, 1, 3, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[IMAGE, 1, 2]])
    flat = model(ids, scan_tokens=frames.flatten(2, 3)).logits
    torch.testing.assert_close(model(ids, scan_tokens=frames).logits, flat)


def test_masked_tokens_are_not_read(fused):
    model, _ = fused
    ids, tokens = torch.tensor([[IMAGE, 1, 2]]), tiny_scans(1, 1)
    mask = torch.arange(TOKENS)[None, None] < 4
    torch.testing.assert_close(
        model(ids, scan_tokens=tokens, token_mask=mask).logits, model(ids, scan_tokens=tokens[:, :, :4]).logits
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"scan_tokens": torch.zeros(1, 1, 7, WIDTH), "scans": torch.zeros(1, 1, 7, WIDTH)},
            "both scans and scan_tokens",
        ),
        ({"scans": torch.zeros(1, 1, 1, 4, 4, 4)}, "this model has no encoder"),
        ({"scan_tokens": torch.zeros(1, 1, 7, WIDTH + 1)}, "do not fit the resampler"),
        ({"scan_tokens": torch.zeros(7, WIDTH)}, "do not fit the text"),
        ({"scan_tokens": torch.zeros(2, 1, 7, WIDTH)}, "do not fit the text"),
        ({"scan_tokens": torch.zeros(1, 1, 7, WIDTH), "scan_mask": torch.ones(1, 2)}, "scan_mask does not fit"),
    ],
)
def test_scans_of_the_wrong_kind(fused, given, message):
    model, _ = fused
    with pytest.raises(UsageError, match=message):
        model(torch.tensor([[IMAGE, 1]]), **given)


def test_assembling_needs_a_width_and_one_that_fits():
    with pytest.raises(UsageError, match="neither an encoder nor a resampler"):
        NeuroFlamingo.assemble(None, tiny_language_model(), tiny_tokenizer())
    with pytest.raises(UsageError, match="the resampler does not fit the encoder"):
        NeuroFlamingo.assemble(
            build_encoder("precomputed", width=8), tiny_language_model(), tiny_tokenizer(), resampler={"dim": 16}
        )
    model, _ = NeuroFlamingo.assemble(build_encoder("precomputed", width=8), tiny_language_model(), tiny_tokenizer())
    assert model.perceiver.settings == PerceiverResampler(dim=8).settings


def test_special_tokens_and_embeddings():
    language_model, tokenizer = tiny_language_model(vocab_size=61), tiny_tokenizer()
    model, processor = NeuroFlamingo.assemble(None, language_model, tokenizer, resampler={"dim": WIDTH})
    assert [tokenizer.convert_tokens_to_ids(t) for t in ("<|endofchunk|>", "<image>", "<PAD>")] == [61, 62, 63]
    assert processor.tokenizer.pad_token == "<PAD>"
    assert model.lang_encoder.get_input_embeddings().weight.shape[0] == 64
    assert (model.config.image_token_id, model.config.endofchunk_token_id) == (62, 61)
    assert model.config.new_token_ids == [61, 62]
    assert model.generation_config.eos_token_id == [61] and model.generation_config.pad_token_id == 63
    assert (
        NeuroFlamingo.assemble(None, tiny_language_model(), tokenizer, resampler={"dim": WIDTH})[0].config.new_token_ids
        == []
    )


def test_gates_start_closed_or_as_asked():
    for gate in (0.0, 0.55):
        model, _ = NeuroFlamingo.assemble(
            None, tiny_language_model(), tiny_tokenizer(), resampler={"dim": WIDTH}, gate=gate
        )
        for block in model.gated_blocks.values():
            assert float(block.attn_gate.detach()) == pytest.approx(gate)
            assert float(block.ff_gate.detach()) == pytest.approx(gate)


@pytest.mark.parametrize("immediate", [True, False])
def test_where_it_looked(immediate):
    model, processor = tiny_model("llama", only_attend_immediate_media=immediate)
    batch = tiny_batch(processor)
    looked = model.attention_rollout(**batch)
    assert looked.shape == (2, 9, 2, TOKENS) and float(looked.min()) >= 0
    time = (batch["input_ids"] == IMAGE).cumsum(-1)
    torch.testing.assert_close(looked.sum((-1, -2)), (time > 0).float())
    first = looked[0, time[0] == 1]
    assert not first[:, 1].any()  # the second scan has not come yet
    second = looked[0, time[0] == 2]
    assert second[:, 0].any() != immediate and second[:, 1].any()
    assert not looked[1, :, 1].any()  # a padded slot


def test_looking_finds_the_token_that_stands_out():
    """A token that all keys and queries prefer gets the attention."""
    model, _ = tiny_model("llama")
    ids, tokens = torch.tensor([[IMAGE, 1, 2]]), torch.zeros(1, 1, TOKENS, WIDTH)
    tokens[0, 0, :] = tiny_scans(1, 1)[0, 0, :1]
    even = model.attention_rollout(ids, scan_tokens=tokens)
    torch.testing.assert_close(even, torch.full_like(even, 1 / TOKENS))
    mask = torch.ones(1, 1, TOKENS, dtype=torch.bool)
    mask[..., 2] = False
    assert not model.attention_rollout(ids, scan_tokens=tokens, token_mask=mask)[..., 2].any()
    tokens[0, 0, 3] *= -3
    odd = model.attention_rollout(ids, scan_tokens=tokens)
    others = [token for token in range(TOKENS) if token != 3]
    assert (odd[..., 3] - odd[..., 0]).abs().min() > 1e-3
    torch.testing.assert_close(odd[..., others], odd[..., :1].expand(-1, -1, -1, TOKENS - 1))


def test_attention_counts_by_what_it_passes_on():
    """What each head adds to the output for each key, summed up by hand; a key without a value adds nothing."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(2, 3, 4, 5, generator=generator).softmax(-1)
    values, to_out = torch.randn(2, 3, 5, 6, generator=generator), torch.randn(7, 18, generator=generator)
    values[:, :, 1] = 0.0
    expected = torch.zeros(2, 4, 5)
    for head in range(3):
        added = values[:, head] @ to_out[:, 6 * head : 6 * head + 6].T
        expected += weights[:, head] * added.norm(dim=-1)[:, None]
    found = norm_weighted(weights, values, to_out)
    torch.testing.assert_close(found, expected / expected.sum(-1, keepdim=True))
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 4))
    assert not found[..., 1].any()


def test_looking_weighs_blocks_by_their_gates():
    model, processor = tiny_model("llama")
    batch = tiny_batch(processor)
    blocks = list(model.gated_blocks.values())
    for block in blocks[1:]:
        nn.init.zeros_(block.attn_gate)
    first = model.attention_rollout(**batch)
    nn.init.zeros_(blocks[0].attn_gate)
    nn.init.constant_(blocks[1].attn_gate, 0.5)
    assert not torch.allclose(model.attention_rollout(**batch), first)
    with pytest.raises(UsageError, match="no scans were given"):
        model.attention_rollout(batch["input_ids"])


def test_tuples_and_hidden_states(fused):
    model, processor = fused
    batch = tiny_batch(processor)
    with torch.no_grad():
        out = model(**batch, output_hidden_states=True)
        assert len(out.hidden_states) == 4
        assert torch.equal(model(**batch, return_dict=False)[0], out.logits)


def test_half_precision_runs(fused):
    model, processor = fused
    batch = tiny_batch(processor)
    half = copy.deepcopy(model).to(torch.bfloat16)
    with torch.no_grad():
        difference = (half(**batch).logits.float() - model(**batch).logits).abs().max()
    assert 0 < float(difference) < 0.2
