"""Tokenisation of samples: token ids, labels and the scans that they refer to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neuroflamingo.data.labels import IGNORED, interleaved_labels, pair_labels
from neuroflamingo.data.templates import Rendered, render
from neuroflamingo.model.tokens import END_OF_CHUNK, IMAGE, token_ids
from neuroflamingo_preprocessing.errors import ConfigError, ScanError

if TYPE_CHECKING:
    from jaxtyping import Bool, Int64

    from neuroflamingo.data.manifest import Sample
    from neuroflamingo.recipe.schema import Kind


@dataclass(frozen=True)
class Sequence:
    """A tokenised sample.

    Attributes:
        id: id of the sample.
        kind: kind of the sample.
        ids: token ids, with one `<image>` per scan.
        labels: token ids where a token is learnt, else -100; not shifted.
        scans: names of the scans, in order.
        weight: loss weight of the sample.
        cut: number of tokens that were cut off.
    """

    id: str
    kind: Kind
    ids: Int64[Tensor, " text"]
    labels: Int64[Tensor, " text"]
    scans: tuple[str, ...]
    weight: float = 1.0
    cut: int = 0

    @property
    def learnt(self) -> int:
        """Number of tokens in the loss; the first token of a text is not predicted."""
        return int((self.labels[1:] != IGNORED).sum())


def build_labels(
    kind: Kind,
    input_ids: Int64[Tensor, "batch text"],
    tokenizer: Any,
    answers: Bool[Tensor, "batch text"] | None = None,
) -> Int64[Tensor, "batch text"]:
    """Labels of unpadded texts: as OpenFlamingo for pairs and interleaved documents, the answers in conversations.

    Args:
        kind: kind of the samples.
        input_ids: token ids.
        tokenizer: a tokenizer with the special tokens.
        answers: for instructions and text, True at tokens of the assistant, end tokens included.

    Returns:
        Token ids, -100 where nothing is learnt; not shifted.
    """
    everything = torch.ones_like(input_ids)
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    if kind == "pairs":
        return pair_labels(input_ids, media_token_id=image, attention_mask=everything)
    if kind == "interleaved":
        end = tokenizer.convert_tokens_to_ids(END_OF_CHUNK)
        return interleaved_labels(input_ids, media_token_id=image, eoc_token_id=end, attention_mask=everything)
    assert answers is not None, "conversations need to know where the answers are"
    return input_ids.masked_fill(~answers | (input_ids == image), IGNORED)


def encode_sample(
    sample: Sample, tokenizer: Any, *, template: str = "plain", max_tokens: int = 512, max_scans: int = 8
) -> Sequence:
    """Tokenise a sample.

    Args:
        sample: a sample of any kind.
        tokenizer: a tokenizer with the special tokens.
        template: see `render`.
        max_tokens: maximum length; longer texts are truncated, together with the scans whose `<image>` is cut off.
        max_scans: maximum number of scans; the text is cut before the next `<image>`.

    Raises:
        ScanError: no token would be learnt (exit 65).
        ConfigError: unknown template, or a tokenizer without character offsets (exit 78).
    """
    sequence = read_sample(sample, tokenizer, template=template, max_tokens=max_tokens, max_scans=max_scans)
    if not sequence.learnt:
        raise nothing_learnt([sample.id], cut=sequence.cut > 0)
    return sequence


def read_sample(sample: Sample, tokenizer: Any, *, template: str, max_tokens: int, max_scans: int) -> Sequence:
    """Tokenise a sample as `encode_sample`, even if no token would be learnt."""
    ids, answers = _tokens(render(sample, template, tokenizer), tokenizer, sample.kind in ("instructions", "text"))
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    places = (ids == image).nonzero()[:, 0]
    end = min(max_tokens, int(places[max_scans]) if len(places) > max_scans else len(ids))
    kept = ids[:end]
    labels = build_labels(sample.kind, kept[None], tokenizer, None if answers is None else answers[None, :end])[0]
    scans = sample.scans[: int((kept == image).sum())]
    return Sequence(sample.id, sample.kind, kept, labels, scans, sample.weight, len(ids) - len(kept))


def nothing_learnt(names: list[str], *, cut: bool = False) -> ScanError:
    """Error for samples without any learnt token."""
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return ScanError(
        f"nothing is learnt from the sample{'s' * (len(names) > 1)} {shown}",
        expected="text of an answer after the scans",
        seen="only a prompt is left after cutting to data.max_tokens and data.max_scans" if cut else "no answer",
        hint="raise data.max_tokens or data.max_scans, or set data.too_long=drop" if cut else "remove or correct it",
    )


def _tokens(rendered: Rendered, tokenizer: Any, conversation: bool) -> tuple[Tensor, Tensor | None]:
    """Token ids of the whole text, and for conversations a mask of the tokens with characters of learnt pieces.

    The text is tokenised as a whole, so that the tokens are the same as at inference.
    """
    if conversation and not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            f"{type(tokenizer).__name__} does not say which characters its tokens stand for",
            expected="a fast tokenizer (a folder with tokenizer.json)",
            hint="AutoTokenizer.from_pretrained(FOLDER, use_fast=True), then save_pretrained",
        )
    ids = torch.tensor(token_ids(tokenizer, rendered.text, special_tokens=rendered.bos), dtype=torch.long)
    if not conversation:
        return ids, None
    encoded = tokenizer(rendered.text, add_special_tokens=rendered.bos, return_offsets_mapping=True)
    learnt = torch.tensor([False] * len(rendered.text) + [False])
    place = 0
    for piece in rendered.pieces:
        learnt[place : place + len(piece.text)] = piece.learnt
        place += len(piece.text)
    offsets = encoded["offset_mapping"][: len(ids)]
    return ids, torch.tensor([bool(learnt[first:last].any()) for first, last in offsets])
