"""Chat templates: rendering of samples as text, in pieces that are learnt or not.

Pairs and interleaved documents always have OpenFlamingo's form; templates apply to turns. Their headings follow those
of the published systems, so that they suit published weights; the wording around them is our own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo.data.chat_trial import try_chat_template
from neuroflamingo.model.library_errors import blame_file
from neuroflamingo.model.tokens import END_OF_CHUNK, IMAGE
from neuroflamingo_preprocessing.errors import ConfigError

if TYPE_CHECKING:
    from neuroflamingo.data.manifest import Sample

Rounds = list[tuple[str, str]]


@dataclass(frozen=True)
class Piece:
    """Part of a text; the tokens of `learnt` pieces count in the loss."""

    text: str
    learnt: bool = False


@dataclass(frozen=True)
class Rendered:
    """A sample rendered as text.

    Attributes:
        pieces: pieces in order.
        bos: let the tokenizer add its own special tokens; False if a chat template has written them.
    """

    pieces: tuple[Piece, ...]
    bos: bool = True

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def prompt(self) -> str:
        """Text before the last learnt piece: the prompt at inference."""
        last = max((place for place, piece in enumerate(self.pieces) if piece.learnt), default=len(self.pieces))
        return "".join(piece.text for piece in self.pieces[:last])


def render(sample: Sample, template: str, tokenizer: Any) -> Rendered:
    """Render a sample as text.

    Args:
        sample: a sample of any kind.
        template: template for turns, one of `TEMPLATES`; pairs and interleaved documents have one form only.
        tokenizer: provides the end token and the chat template.

    Raises:
        ConfigError: unknown template, or a tokenizer without a usable chat template (exit 78).
        ModelError: a chat template that fails, or does not come to an end (exit 65).
    """
    check_template(template, tokenizer)
    if sample.kind == "pairs":
        text = f"{(sample.text or '').strip()}{END_OF_CHUNK}{tokenizer.eos_token or ''}"
        return Rendered((Piece(IMAGE * len(sample.scans)), Piece(text, True)))
    if sample.kind == "interleaved":
        return Rendered(tuple(piece for piece in _chunks(sample.text or "", tokenizer.eos_token or "") if piece.text))
    return TEMPLATES[template](_rounds(sample), tokenizer)


def check_template(template: str, tokenizer: Any) -> None:
    """Refuse an unknown template.

    Raises:
        ConfigError: see `render`.
    """
    if template not in TEMPLATES:
        raise ConfigError(f"there is no template '{template}'", expected=", ".join(TEMPLATES), seen=template)
    if template == "chat" and not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            "this tokenizer has no chat template",
            expected="a language model that was trained to chat",
            hint=f"data.template: {' or '.join(sorted(set(TEMPLATES) - {'chat'}))}",
        )
    if template == "chat" and isinstance(tokenizer.chat_template, str):
        try_chat_template(tokenizer.chat_template)


def _chunks(text: str, end: str) -> Iterator[Piece]:
    """Interleaved document in OpenFlamingo's form: `text<image>text<|endofchunk|><image>text<|endofchunk|>`.

    Scans side by side stay so, as in pairs and prompts. An end of chunk that the document already has is not added
    twice; the text after it is not learnt. Neither is the end token, as upstream.
    """
    before, *parts = text.split(IMAGE)
    yield Piece(before.strip())
    for number, part in enumerate(parts, 1):
        chunk, _, rest = part.partition(END_OF_CHUNK)
        yield Piece(IMAGE)
        if not part.strip() and number < len(parts):  # scans side by side share the chunk of the last one
            continue
        yield Piece(chunk.strip() + END_OF_CHUNK, True)
        yield Piece(END_OF_CHUNK.join(shown.strip() for shown in rest.split(END_OF_CHUNK)))
    yield Piece(end)


def _rounds(sample: Sample) -> list[tuple[str, str]]:
    """Pairs of a user's turn and the assistant's answer."""
    said = [turn.text.strip() for turn in sample.turns]
    return list(zip(said[::2], said[1::2], strict=True))


def _split(said: str) -> tuple[str, str]:
    """Separate the `<image>` tokens of a user's turn from its words."""
    return IMAGE * said.count(IMAGE), " ".join(part.strip() for part in said.split(IMAGE) if part.strip())


def _plain(rounds: Rounds, tokenizer: Any) -> Rendered:
    """Template: scans and question, a line break, the answer and its end of chunk."""
    pieces = []
    for said, answer in rounds:
        images, words = _split(said)
        pieces += [Piece(f"{images}{words}\n"), Piece(answer + END_OF_CHUNK, True)]
    return Rendered(_ended(pieces, tokenizer))


def _question_answer(rounds: Rounds, tokenizer: Any) -> Rendered:
    """Template: scans, `Question: ... Answer: ...` and an end of chunk after each answer, as in Med-Flamingo.

    Also suits clinical questions as in the fine-tuning of PaliGemma: the question is the prefix, and only the answer is
    learnt. Differs from PaliGemma: attention is causal in the prefix as well.
    """
    pieces = []
    for said, answer in rounds:
        images, words = _split(said)
        pieces += [Piece(f"{images}Question: {words} Answer:"), Piece(f" {answer}{END_OF_CHUNK}", True)]
    return Rendered(_ended(pieces, tokenizer))


PREAMBLE = "An instruction follows. Write a response that does what it asks.\n\n"


def _multimodal_gpt(rounds: Rounds, tokenizer: Any) -> Rendered:
    """Template: `### Image:` (if there are scans), `### Instruction:` and `### Response:` headings in each round.

    Each response and the end token after it are learnt. Without scans it is the language-only form.
    """
    pieces = [Piece(PREAMBLE)]
    for said, answer in rounds:
        images, words = _split(said)
        shown = f"### Image:\n{images}\n\n" if images else ""
        pieces += [Piece(f"{shown}### Instruction:\n{words}\n\n### Response:\n")]
        pieces += [Piece(answer + (tokenizer.eos_token or END_OF_CHUNK), True), Piece("\n\n")]
    return Rendered(tuple(pieces[:-1]))


def _chat(rounds: Rounds, tokenizer: Any) -> Rendered:
    """The language model's own chat template; the user's turns begin with their scans, as in LLaVA.

    Raises:
        ConfigError: the template changes earlier turns once later ones are added, so that answers cannot be located.
    """
    conversation: list[dict[str, str]] = []
    whole, answers = "", []
    for said, answer in rounds:
        images, words = _split(said)
        conversation.append({"role": "user", "content": f"{images}\n{words}" if images else words})
        with blame_file(Path(str(tokenizer.name_or_path)) / "chat_template", "a template for conversations"):
            prompt = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
            conversation.append({"role": "assistant", "content": answer})
            answered = tokenizer.apply_chat_template(conversation, tokenize=False)
        if answers and not prompt.startswith(whole):  # some templates end the conversation, not each turn
            whole = whole.removesuffix(tokenizer.eos_token or "")
            answers[-1] = (answers[-1][0], len(whole.rstrip()))
        if not (prompt.startswith(whole) and answered.startswith(prompt)):
            raise ConfigError(
                "the tokenizer's chat template changes a turn when later turns follow",
                expected="a template that only appends, so that answers can be separated from prompts",
                seen=f"a conversation of {len(rounds)} rounds, changed in round {len(conversation) // 2}",
                hint="another data.template, or conversations of one round",
            )
        whole = answered
        answers.append((len(prompt), len(answered.rstrip())))  # the line break after a turn belongs to the next one
    edges = [0, *(edge for answer in answers for edge in answer), len(whole)]
    pieces = (Piece(whole[a:b], bool(n % 2)) for n, (a, b) in enumerate(pairwise(edges)))
    return Rendered(tuple(piece for piece in pieces if piece.text), bos=False)


def _ended(pieces: list[Piece], tokenizer: Any) -> tuple[Piece, ...]:
    """Add a learnt end token after the last end of chunk."""
    return (*pieces[:-1], Piece(pieces[-1].text + (tokenizer.eos_token or ""), True))


TEMPLATES: dict[str, Callable[[Rounds, Any], Rendered]] = {
    "plain": _plain,
    "question-answer": _question_answer,
    "multimodal-gpt": _multimodal_gpt,
    "chat": _chat,
}
