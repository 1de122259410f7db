"""`NeuroFlamingoProcessor`: prompts and scans to the tensors that the model takes, and ids back to text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, BatchFeature

from neuroflamingo.model.folder import check_folder, read_card, read_prompts
from neuroflamingo.model.library_errors import blame_file
from neuroflamingo.model.prompt_forms import TrainedPrompts, check_prompt
from neuroflamingo.model.tokens import ENCODER_CARD, END_OF_CHUNK, IMAGE, PAD, token_ids
from neuroflamingo_preprocessing.errors import UsageError
from neuroflamingo_preprocessing.preparation import prepare

if TYPE_CHECKING:
    from neuroflamingo_encoders.card import EncoderCard

TRIAL = f"{IMAGE} A scan of the head. {'a' * 48}! {'0' * 48}x{' ' * 48}x {'(' * 48}{END_OF_CHUNK}"
"""A text that every tokenizer must be able to split; one whose patterns search without end is found out by it."""


def add_special_tokens(tokenizer: Any) -> list[int]:
    """Add `<|endofchunk|>`, `<image>` and, if there is no padding token, `<PAD>`, in upstream's order.

    Returns:
        The ids of the first two, as far as they are new: their embeddings have to be learnt.
    """
    known = set(tokenizer.get_vocab())
    tokenizer.add_tokens([END_OF_CHUNK, IMAGE], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD})
    return [tokenizer.convert_tokens_to_ids(token) for token in (END_OF_CHUNK, IMAGE) if token not in known]


class NeuroFlamingoProcessor:
    """Tokenizer and preprocessing of one model.

    Args:
        tokenizer: a transformers tokenizer that has the special tokens.
        card: the encoder's card, from which preprocessing is derived; None: only ready tokens.
        prompts: prompt forms that the model was trained for; None: they are not known, and no prompt is refused.

    Example:
        >>> import torch
        >>> from neuroflamingo import load
        >>> _, processor = load("tiny-t1w", device="cpu")
        >>> inputs = processor(["<image>"], scan_tokens=[[torch.zeros(256, 192)]])
        >>> list(inputs["scan_tokens"].shape)  # batch scan token width
        [1, 1, 256, 192]
    """

    def __init__(self, tokenizer: Any, card: EncoderCard | None = None, prompts: TrainedPrompts | None = None) -> None:
        self.tokenizer = tokenizer
        self.card = card
        self.prompts = prompts

    def __call__(
        self,
        text: str | Sequence[str],
        scans: Any = None,
        scan_tokens: Any = None,
        *,
        padding_side: str = "left",
        force: bool = False,
    ) -> BatchFeature:
        """A batch for the model.

        Args:
            text: one prompt per row, with one `<image>` per scan.
            scans: per row its scans: prepared tensors, or anything that `prepare` takes (paths, `Scan`s, runs), which
                is prepared as the encoder's card says. One row may be given without the outer list.
            scan_tokens: instead, per row, ready tokens `[token, width]` or `[frame, token, width]` of each scan.
            padding_side: left for generation, right for training.
            force: take prompts of a form that the model was not trained for.

        Returns:
            `input_ids`, `attention_mask`, and, with scans, `scans` or `scan_tokens` and `scan_mask`.

        Raises:
            UsageError: an empty prompt, or numbers of `<image>` and of scans that differ.
            ModelError: the model was not trained for such a prompt (exit 65).
        """
        texts = [text] if isinstance(text, str) else list(text)
        for row, prompt in enumerate(texts):
            if not prompt:
                raise UsageError(f"prompt {row} is empty", expected="text", hint="begin with '<image>'")
            check_prompt(prompt, self.prompts, force=force)
        rows = [torch.tensor(token_ids(self.tokenizer, prompt), dtype=torch.long) for prompt in texts]
        data: dict[str, Any] = {
            "input_ids": pad_sequence(rows, True, self.tokenizer.pad_token_id, padding_side),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], True, 0, padding_side),
        }
        for name, given in (("scans", scans), ("scan_tokens", scan_tokens)):
            if given is None:
                continue
            tensors = [[self._tensor(scan) for scan in row] for row in self._rows(given, texts)]
            data[name], data["scan_mask"] = pad_scans(tensors)
        return BatchFeature(data)

    @staticmethod
    def _rows(given: Any, texts: list[str]) -> list[list[Any]]:
        if isinstance(given, str | Path) or not isinstance(given, Sequence | Tensor):
            given = [given]
        if len(texts) == 1 and not (len(given) == 1 and isinstance(given[0], list | tuple)):
            given = [given]
        rows = [[row] if isinstance(row, str) or not isinstance(row, Sequence | Tensor) else list(row) for row in given]
        images = [prompt.count(IMAGE) for prompt in texts]
        if [len(row) for row in rows] != images:
            raise UsageError(
                "the <image> tokens and the scans do not fit",
                expected=f"per prompt, as many scans as <image> tokens: {images}",
                seen=f"scans per prompt {[len(row) for row in rows]}",
                hint="write <image> once per scan, in the same order",
            )
        return rows

    def _tensor(self, scan: Any) -> Tensor:
        if isinstance(scan, Tensor):
            return scan
        if hasattr(scan, "tensor"):
            return torch.as_tensor(scan.tensor)
        if self.card is None:
            raise UsageError("this model has no encoder", expected="precomputed tokens", seen=type(scan).__name__)

        return torch.as_tensor(prepare(scan, self.card.scan).tensor)

    def decode(self, ids: Any, *, prompt_length: int = 0, skip_special_tokens: bool = True) -> str | list[str]:
        """Text of generated ids, without the first `prompt_length` of them; a list for a batch."""
        ids = torch.as_tensor(ids)
        if ids.ndim == 1:
            return self.tokenizer.decode(ids[prompt_length:], skip_special_tokens=skip_special_tokens)
        return self.tokenizer.batch_decode(ids[:, prompt_length:], skip_special_tokens=skip_special_tokens)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write the tokenizer and the encoder's card."""
        self.tokenizer.save_pretrained(str(save_directory))
        if self.card is not None:
            text = json.dumps(self.card.model_dump(mode="json"), indent=2, ensure_ascii=False)
            (Path(save_directory) / ENCODER_CARD).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> Self:
        """Read what `save_pretrained` wrote; the files are checked as those of the model are."""
        path = check_folder(folder)
        with blame_file(path / "tokenizer.json", "the files of a tokenizer, as save_pretrained writes them"):
            tokenizer: Any = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
            tokenizer.decode(tokenizer(TRIAL)["input_ids"])
        return cls(tokenizer, read_card(path), read_prompts(path))


def pad_scans(rows: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
    """Stack rows with different numbers of scans: `[batch, scan, ...]`, and `[batch, scan]`, False for the padding.

    Raises:
        UsageError: no scan at all, or scans of different shapes.
    """
    shapes = {tuple(scan.shape) for row in rows for scan in row}
    if len(shapes) != 1:
        raise UsageError("the scans of a batch must have one shape", seen=f"shapes {sorted(shapes)}")
    sample = next(scan for row in rows for scan in row)
    longest = max(len(row) for row in rows)
    stacked = sample.new_zeros(len(rows), longest, *sample.shape)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for index, row in enumerate(rows):
        for place, scan in enumerate(row):
            stacked[index, place] = scan
            mask[index, place] = True
    return stacked, mask
