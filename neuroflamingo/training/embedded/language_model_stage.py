"""Language model stage: a small language model and its tokenizer, pretrained on rendered reports only, then frozen."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from neuroflamingo.model.tokens import END_OF_CHUNK, IMAGE, PAD
from neuroflamingo.recipe.embedded_recipe import PromptSettings
from neuroflamingo.training.checkpoints import replace_folder
from neuroflamingo.training.embedded.documents import Document, Texts, encode_documents
from neuroflamingo.training.embedded.imagined import draw_example_count, draw_form, imagined_document
from neuroflamingo.training.embedded.stage import StageTask, plan_of, train_stage
from neuroflamingo.training.parallel import summed
from neuroflamingo.training.task import Counts
from neuroflamingo_preprocessing.drafts import draft_folder

if TYPE_CHECKING:
    from accelerate import Accelerator

    from neuroflamingo.recipe.embedded_recipe import EmbeddedRecipe, LanguageModelStageSettings

TOKENIZER_REPORTS, TOKENIZER_BATCH, TOKENIZER_SEED = 20_000, 20, 10_000_000
CONTEXT = 2048
HELD_OUT, HELD_OUT_SEED = 256, 90_000_000
HELD_OUT_BATCH = 16


def imagined_batch(prompts: PromptSettings, size: int, seed: int, number: int) -> list[Document]:
    """Draw documents of one form.

    Args:
        prompts: shares of the forms.
        size: number of documents.
        seed, number: of the run and of the batch; nothing else decides.
    """
    rng = np.random.default_rng([seed, 7, number])
    form, examples = draw_form(prompts, rng), draw_example_count(prompts, rng)
    return [imagined_document(form, examples, rng) for _ in range(size)]


def train_tokenizer(vocabulary: int, seed: int, prompts: PromptSettings | None = None) -> PreTrainedTokenizerFast:
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
    forms = prompts or PromptSettings()
    batches = (imagined_batch(forms, TOKENIZER_BATCH, seed, n) for n in range(TOKENIZER_REPORTS // TOKENIZER_BATCH))
    texts = (part.report.text for batch in batches for document in batch for part in document)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_CHUNK,
        pad_token=PAD,
        additional_special_tokens=[IMAGE],
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def tokenizer_of(recipe: EmbeddedRecipe) -> PreTrainedTokenizerFast:
    """Train the tokenizer of a recipe."""
    settings = recipe.language_model
    return train_tokenizer(settings.vocabulary, TOKENIZER_SEED + recipe.seed, settings.prompts)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Read the tokenizer of a run."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    for key in ("is_local", "local_files_only"):  # of how it was read; not for the finished model's folder
        tokenizer.init_kwargs.pop(key, None)
    return tokenizer


class LanguageModelTask(StageTask):
    """Task of the language model stage: the next token of rendered reports, without scans."""

    model: LlamaForCausalLM
    choose_by = "score"

    def __init__(self, recipe: EmbeddedRecipe, tokenizer: PreTrainedTokenizerFast, accelerator: Accelerator) -> None:
        torch.manual_seed(recipe.seed)
        model = untrained(recipe.language_model, tokenizer).to(accelerator.device)  # type: ignore[arg-type]
        super().__init__(model, plan_of(recipe, "language_model"), accelerator)
        self.tokenizer = tokenizer
        self.prompts = recipe.language_model.prompts
        batches = self.own_share(HELD_OUT // HELD_OUT_BATCH)
        drawn = (imagined_batch(self.prompts, HELD_OUT_BATCH, HELD_OUT_SEED, number) for number in batches)
        self.held_out = [encode_documents(tokenizer, documents) for documents in drawn]
        self.run_in(model)

    def micro_batches(self, first: int) -> Iterator[Texts]:
        """Draw rendered reports, from the given number on."""
        for number in count(first):
            documents = imagined_batch(self.prompts, self.plan.optim.batch, self.plan.seed, number)
            yield encode_documents(self.tokenizer, documents[self.rows])

    def count(self, batch: Texts) -> Counts:
        """Count the texts and labelled tokens of a micro-batch."""
        return Counts(float(len(batch.ids)), 0.0, batch.learnt(), (batch.learnt(),))

    def loss(self, batch: Texts, step: Counts, micro_step: int) -> tuple[Tensor, dict[str, float]]:
        """Compute the mean loss per labelled token, as the micro-batch's share of the step's."""
        (learnt,) = step.divisors
        return self._mean_loss(self.runner, batch) * (batch.learnt() / learnt), {}

    def figures(self) -> dict[str, float]:
        """Compute the loss of held-out reports."""
        losses = [float(self._mean_loss(self.model, texts)) * texts.learnt() for texts in self.held_out]
        total, tokens = summed(self.accelerator, sum(losses), sum(texts.learnt() for texts in self.held_out))
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
            tokenizer_of(recipe).save_pretrained(draft)
            replace_folder(draft, place)
    accelerator.wait_for_everyone()
    tokenizer = read_tokenizer(place)
    task = LanguageModelTask(recipe, tokenizer, accelerator)
    figures = train_stage(task, folder, recipe.language_model.start, quiet)
    return task.model, tokenizer, figures
