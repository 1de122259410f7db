"""The small language model and its tokenizer, pretrained on rendered reports alone, then frozen."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from neuroflamingo.findings.unreadable import unreadable_report
from neuroflamingo.findings.wording import IMPRESSION, RenderedReport, render_report
from neuroflamingo.model.tokens import END_OF_CHUNK, IMAGE, PAD
from neuroflamingo.painting.cases import draw_wishes
from neuroflamingo.training.embedded.stage_loop import run_stage
from neuroflamingo.training.embedded.stage_settings import LanguageSettings

TOKENIZER_REPORTS = 20_000
CONTEXT = 2048
BLANK_SHARE = 0.02
"""Share of texts (and of scans, when the bridge is trained) that are blank."""


def imagined_report(seed: int) -> RenderedReport:
    """A report of findings drawn as painting draws them, without painting (sizes as drawn, every place possible)."""
    rng = np.random.default_rng([seed, 7])
    return unreadable_report(seed) if rng.random() < BLANK_SHARE else render_report(draw_wishes(rng), seed)


def train_tokenizer(vocabulary: int, first_seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE on rendered reports; whole words and whole numbers become single tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_CHUNK, IMAGE, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((imagined_report(first_seed + i).text for i in range(TOKENIZER_REPORTS)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_CHUNK,
        pad_token=PAD,
        additional_special_tokens=[IMAGE],
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def encode_reports(
    tokenizer: PreTrainedTokenizerFast,
    reports: list[RenderedReport],
    finding_weight: float = 1.0,
    impression_only: Collection[int] = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Token ids, mask, labels and loss weights of `<image>report<|endofchunk|>`, padded on the right.

    Args:
        impression_only: rows of which nothing before the impression is learnt.

    Returns:
        four tensors `[batch, text]`; labels are -100 at padding and `<image>`; weights are `finding_weight` where a
        token overlaps a finding-carrying word, 1 elsewhere.
    """
    encoded = tokenizer([r.text for r in reports], return_offsets_mapping=True, add_special_tokens=False)
    image, end, pad = (tokenizer.convert_tokens_to_ids(t) for t in (IMAGE, END_OF_CHUNK, PAD))
    longest = max(len(ids) for ids in encoded["input_ids"]) + 2
    ids = torch.full((len(reports), longest), pad)  # pyright: ignore[reportCallIssue, reportArgumentType]
    labels, weights = torch.full_like(ids, -100), torch.zeros(ids.shape)
    for row, (report, tokens, offsets) in enumerate(
        zip(reports, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ):
        whole = torch.tensor([image, *tokens, end])
        ids[row, : len(whole)] = whole
        labels[row, 1 : len(whole)] = whole[1:]
        weights[row, 1 : len(whole)] = 1.0
        starts, ends = (np.array([o[k] for o in offsets]) for k in (0, 1))
        for first, last in report.spans:
            weights[row, 1 + np.flatnonzero((starts < last) & (ends > first))] = finding_weight
        if row in impression_only:
            before = 1 + np.flatnonzero(ends <= report.text.index(IMPRESSION) + len(IMPRESSION))
            labels[row, before], weights[row, before] = -100, 0.0
    return ids, (ids != pad).long(), labels, weights


def train_language_model(
    folder: Path, settings: LanguageSettings, seed: int, device: str = "cpu", quiet: bool = False
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, dict[str, float]]:
    """Train tokenizer and language model; the weights with the lowest held-out loss are kept."""
    tokenizer_folder = folder / "tokenizer"
    if (tokenizer_folder / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    else:
        tokenizer = train_tokenizer(settings.vocabulary, 10_000_000 + seed)
        tokenizer.save_pretrained(tokenizer_folder)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden,
            intermediate_size=settings.feed_forward,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,  # pyright: ignore[reportArgumentType]
            pad_token_id=tokenizer.pad_token_id,  # pyright: ignore[reportArgumentType]
        )
    ).to(device)  # type: ignore[arg-type]
    held_out = encode_reports(tokenizer, [imagined_report(90_000_000 + i) for i in range(256)])[:3]

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        first = 20_000_000 + seed + step * settings.batch
        texts = encode_reports(tokenizer, [imagined_report(first + i) for i in range(settings.batch)])
        ids, mask, labels = (part.to(device) for part in texts[:3])
        return model(input_ids=ids, attention_mask=mask, labels=labels).loss, {}

    def validate(module: torch.nn.Module) -> dict[str, float]:
        ids, mask, labels = (part.to(device) for part in held_out)
        loss = float(model(input_ids=ids, attention_mask=mask, labels=labels).loss)
        return {"held_out_loss": loss, "score": -loss}

    figures = run_stage("language model", folder, model, settings, loss_of, validate, "score", quiet=quiet)
    return model, tokenizer, figures
