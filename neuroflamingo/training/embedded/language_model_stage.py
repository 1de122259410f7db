"""Language model stage: a small language model and its tokenizer, pretrained on rendered reports only, then frozen."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from neuroflamingo.data.labels import IGNORED
from neuroflamingo.findings.unreadable import unreadable_report
from neuroflamingo.findings.wording import IMPRESSION, RenderedReport, render_report
from neuroflamingo.model.tokens import END_OF_CHUNK, IMAGE, PAD
from neuroflamingo.painting.cases import draw_wishes
from neuroflamingo.training.checkpoints import replace_folder
from neuroflamingo.training.embedded.stage import StageTask, plan_of, train_stage
from neuroflamingo.training.parallel import summed
from neuroflamingo.training.task import Counts
from neuroflamingo_preprocessing.drafts import draft_folder

if TYPE_CHECKING:
    from accelerate import Accelerator

    from neuroflamingo.recipe.embedded_recipe import EmbeddedRecipe, LanguageModelStageSettings

TOKENIZER_REPORTS, TOKENIZER_SEED = 20_000, 10_000_000
CONTEXT = 2048
HELD_OUT, HELD_OUT_SEED = 256, 90_000_000
BLANK_SHARE = 0.02
"""Share of blank texts (and of blank scans in the fusion stage)."""


def imagined_report(seed: int) -> RenderedReport:
    """Write a report of random findings, drawn as for painting but not painted (sizes as drawn, any location)."""
    rng = np.random.default_rng([seed, 7])
    return unreadable_report(seed) if rng.random() < BLANK_SHARE else render_report(draw_wishes(rng), seed)


def train_tokenizer(vocabulary: int, first_seed: int) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on rendered reports; whole words and whole numbers become single tokens."""
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


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Read the tokenizer of a run."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    for key in ("is_local", "local_files_only"):  # of how it was read; not for the finished model's folder
        tokenizer.init_kwargs.pop(key, None)
    return tokenizer


class Texts(NamedTuple):
    """Token ids, attention mask, labels and loss weights, each `[batch, text]`."""

    ids: Tensor
    mask: Tensor
    labels: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> Texts:
        """The same texts on a device."""
        return Texts(*(part.to(device) for part in self))

    def rows(self, rows: slice) -> Texts:
        """Select some of the texts."""
        return Texts(*(part[rows] for part in self))

    def learnt(self) -> float:
        """Number of tokens with labels; the first of a row has none, since nothing precedes it."""
        return float((self.labels[:, 1:] != IGNORED).sum())


def encode_reports(
    tokenizer: PreTrainedTokenizerFast,
    reports: list[RenderedReport],
    finding_weight: float = 1.0,
    impression_only: Collection[int] = (),
) -> Texts:
    """Encode `<image>report<|endofchunk|>` as ids, mask, labels and loss weights, padded on the right.

    Args:
        impression_only: rows in which only the impression has labels.

    Returns:
        Labels are -100 at padding and `<image>`; weights are `finding_weight` where a token overlaps a finding-carrying
        word, 1 elsewhere.
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
    return Texts(ids, (ids != pad).long(), labels, weights)


class LanguageModelTask(StageTask):
    """Task of the language model stage: the next token of rendered reports, without scans."""

    model: LlamaForCausalLM
    choose_by = "score"

    def __init__(self, recipe: EmbeddedRecipe, tokenizer: PreTrainedTokenizerFast, accelerator: Accelerator) -> None:
        torch.manual_seed(recipe.seed)
        model = untrained(recipe.language_model, tokenizer).to(accelerator.device)  # type: ignore[arg-type]
        super().__init__(model, plan_of(recipe, "language_model"), accelerator)
        self.tokenizer = tokenizer
        held_out = self.own_share(HELD_OUT)
        self.held_out = encode_reports(tokenizer, [imagined_report(HELD_OUT_SEED + i) for i in range(HELD_OUT)]).rows(
            slice(held_out.start, held_out.stop)
        )
        self.run_in(model)

    def micro_batches(self, first: int) -> Iterator[Texts]:
        """Draw rendered reports, from the given number on."""
        size = self.plan.optim.batch
        for number in count(first):
            seed = 20_000_000 + self.plan.seed + number * size
            yield encode_reports(self.tokenizer, [imagined_report(seed + i) for i in range(size)[self.rows]])

    def count(self, batch: Texts) -> Counts:
        """Count the texts and labelled tokens of a micro-batch."""
        return Counts(float(len(batch.ids)), 0.0, batch.learnt(), (batch.learnt(),))

    def loss(self, batch: Texts, step: Counts, micro_step: int) -> tuple[Tensor, dict[str, float]]:
        """Compute the mean loss per labelled token, as the micro-batch's share of the step's."""
        (learnt,) = step.divisors
        return self._mean_loss(self.runner, batch) * (batch.learnt() / learnt), {}

    def figures(self) -> dict[str, float]:
        """Compute the loss of held-out reports."""
        learnt = self.held_out.learnt()
        total, tokens = summed(self.accelerator, float(self._mean_loss(self.model, self.held_out)) * learnt, learnt)
        return {"held_out_loss": total / tokens, "score": -total / tokens}

    def _mean_loss(self, module: nn.Module, texts: Texts) -> Tensor:
        ids, mask, labels, _ = texts.to(self.accelerator.device)
        return module(input_ids=ids, attention_mask=mask, labels=labels).loss


def untrained(settings: LanguageModelStageSettings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Build the language model with random weights."""
    config = LlamaConfig(
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
    return LlamaForCausalLM(config)


def train_language_model(
    folder: Path, recipe: EmbeddedRecipe, accelerator: Accelerator, quiet: bool = False
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, dict[str, float]]:
    """Train tokenizer and language model and keep the weights with the lowest held-out loss."""
    place = folder / "tokenizer"
    if accelerator.is_main_process and not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with draft_folder(place) as draft:
            train_tokenizer(recipe.language_model.vocabulary, TOKENIZER_SEED + recipe.seed).save_pretrained(draft)
            replace_folder(draft, place)
    accelerator.wait_for_everyone()
    tokenizer = read_tokenizer(place)
    task = LanguageModelTask(recipe, tokenizer, accelerator)
    figures = train_stage(task, folder, recipe.language_model.start, quiet)
    return task.model, tokenizer, figures
