"""How a sample becomes text: pieces, each of which is learnt or not.

Pairs and interleaved documents have OpenFlamingo's one form whatever the template; templates are for turns. Their
headings follow the published systems', so that their weights find what they know; the wording around them is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from neuroflamingo.model.tokens import END_OF_CHUNK, IMAGE
from neuroflamingo_preprocessing.errors import ConfigError

if TYPE_CHECKING:
    from neuroflamingo.data.manifest import Sample

Rounds = list[tuple[str, str]]


@dataclass(frozen=True)
class Piece:
    """A part of a text; `learnt`: the loss counts its tokens."""

    text: str
    learnt: bool = False


@dataclass(frozen=True)
class Rendered:
    """A sample as text.

    Attributes:
        pieces: in order.
        bos: whether the tokenizer is to put its own tokens around the text: not where a chat template wrote them.
    """

    pieces: tuple[Piece, ...]
    bos: bool = True

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def prompt(self) -> str:
        """What stands before the last learnt piece: what the model is given to answer."""
        last = max((place for place, piece in enumerate(self.pieces) if piece.learnt), default=len(self.pieces))
        return "".join(piece.text for piece in self.pieces[:last])


def render(sample: Sample, template: str, tokenizer: Any) -> Rendered:
    """A sample as text.

    Args:
        sample: of any kind.
        template: how turns are written, one of `TEMPLATES`; pairs and interleaved documents have one form only.
        tokenizer: for its end token, and its chat template.

    Raises:
        ConfigError: no such template, or a tokenizer without (a usable) chat template (exit 78).
    """
    check_template(template, tokenizer)
    if sample.kind == "pairs":
        text = f"{(sample.text or '').strip()}{END_OF_CHUNK}{tokenizer.eos_token or ''}"
        return Rendered((Piece(IMAGE * len(sample.scans)), Piece(text, True)))
    if sample.kind == "interleaved":
        return Rendered(tuple(piece for piece in _chunks(sample.text or "", tokenizer.eos_token or "") if piece.text))
    return TEMPLATES[template](_rounds(sample), tokenizer)


def check_template(template: str, tokenizer: Any) -> None:
    """Refuse a template that there is not.

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


def _chunks(text: str, end: str) -> Iterator[Piece]:
    """An interleaved document in OpenFlamingo's form: `text<image>text<|endofchunk|><image>text<|endofchunk|>`.

    An end of chunk that the document has already stays the only one; what follows it is shown and not learnt. Nor is
    the end token: so it is upstream.
    """
    before, *parts = text.split(IMAGE)
    yield Piece(before.strip())
    for part in parts:
        chunk, _, rest = part.partition(END_OF_CHUNK)
        yield Piece(IMAGE)
        yield Piece(chunk.strip() + END_OF_CHUNK, True)
        yield Piece(END_OF_CHUNK.join(shown.strip() for shown in rest.split(END_OF_CHUNK)))
    yield Piece(end)


def _rounds(sample: Sample) -> list[tuple[str, str]]:
    """What the user says, and what the assistant answers."""
    said = [turn.text.strip() for turn in sample.turns]
    return list(zip(said[::2], said[1::2], strict=True))


def _split(said: str) -> tuple[str, str]:
    """The scans that a user shows in a turn, and the words around them, in one piece."""
    return IMAGE * said.count(IMAGE), " ".join(part.strip() for part in said.split(IMAGE) if part.strip())


def _plain(rounds: Rounds, tokenizer: Any) -> Rendered:
    """Scans and question, a line break, the answer and its end of chunk."""
    pieces = []
    for said, answer in rounds:
        images, words = _split(said)
        pieces += [Piece(f"{images}{words}\n"), Piece(answer + END_OF_CHUNK, True)]
    return Rendered(_ended(pieces, tokenizer))


def _question_answer(rounds: Rounds, tokenizer: Any) -> Rendered:
    """Scans, `Question: ... Answer: ...`, and an end of chunk after each answer, as Med-Flamingo asks.

    Also for clinical questions as PaliGemma is transferred to them: the question is the prefix, the loss is the
    answer's. Differs from PaliGemma: text attends to the text before it only, the prefix too.
    """
    pieces = []
    for said, answer in rounds:
        images, words = _split(said)
        pieces += [Piece(f"{images}Question: {words} Answer:"), Piece(f" {answer}{END_OF_CHUNK}", True)]
    return Rendered(_ended(pieces, tokenizer))


PREAMBLE = "An instruction follows. Write a response that does what it asks.\n\n"


def _multimodal_gpt(rounds: Rounds, tokenizer: Any) -> Rendered:
    """Headings `### Image:` (where scans are shown), `### Instruction:` and `### Response:`, one set for each round.

    Learnt are each response and the end token after it. Without scans it is the language-only form.
    """
    pieces = [Piece(PREAMBLE)]
    for said, answer in rounds:
        images, words = _split(said)
        shown = f"### Image:\n{images}\n\n" if images else ""
        pieces += [Piece(f"{shown}### Instruction:\n{words}\n\n### Response:\n")]
        pieces += [Piece(answer + (tokenizer.eos_token or END_OF_CHUNK), True), Piece("\n\n")]
    return Rendered(tuple(pieces[:-1]))


def _chat(rounds: Rounds, tokenizer: Any) -> Rendered:
    """The language model's own chat template; the user's turns begin with their scans, as LLaVA's do.

    Raises:
        ConfigError: a template that changes earlier turns once later ones are there: what is learnt cannot be told.
    """
    talk: list[dict[str, str]] = []
    whole, answers = "", []
    for said, answer in rounds:
        images, words = _split(said)
        talk.append({"role": "user", "content": f"{images}\n{words}" if images else words})
        asked = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        talk.append({"role": "assistant", "content": answer})
        told = tokenizer.apply_chat_template(talk, tokenize=False)
        if answers and not asked.startswith(whole):  # some templates put the end token after each talk, not each turn
            whole = whole.removesuffix(tokenizer.eos_token or "")
            answers[-1] = (answers[-1][0], len(whole.rstrip()))
        if not (asked.startswith(whole) and told.startswith(asked)):
            raise ConfigError(
                "the tokenizer's chat template writes a turn otherwise once others follow",
                expected="a template that only adds to what it wrote, so that answers can be told from prompts",
                seen=f"a talk of {len(rounds)} rounds, changed in round {len(talk) // 2}",
                hint="another data.template, or talks of one round",
            )
        whole = told
        answers.append((len(asked), len(told.rstrip())))  # the line break after a turn belongs to the next one
    edges = [0, *(edge for answer in answers for edge in answer), len(whole)]
    pieces = (Piece(whole[a:b], bool(n % 2)) for n, (a, b) in enumerate(pairwise(edges)))
    return Rendered(tuple(piece for piece in pieces if piece.text), bos=False)


def _ended(pieces: list[Piece], tokenizer: Any) -> tuple[Piece, ...]:
    """With the end token after the last end of chunk, learnt."""
    return (*pieces[:-1], Piece(pieces[-1].text + (tokenizer.eos_token or ""), True))


TEMPLATES: dict[str, Callable[[Rounds, Any], Rendered]] = {
    "plain": _plain,
    "question-answer": _question_answer,
    "multimodal-gpt": _multimodal_gpt,
    "chat": _chat,
}
