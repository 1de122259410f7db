"""Toy data for the tiny twins of recipes: samples whose texts depend on their scans, and a tokenizer for these texts.

A scan shows one of four patterns, and what is said of it follows from the pattern alone. So a model that reads its
scans can know every word, and one that does not is left with a guess. The files are those of `toy_scans`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo.data.manifest import Sample, Turn
from neuroflamingo.findings.vocabulary import Finding, FindingClass, Region, Side
from neuroflamingo.model.tokens import IMAGE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from neuroflamingo.recipe.schema import Kind

_LESIONS = Finding(kind=FindingClass.WHITE_MATTER_LESIONS, side=Side.BILATERAL, region=Region.WHITE_MATTER, grade=3)
_VENTRICLES = Finding(kind=FindingClass.VENTRICULAR_ENLARGEMENT, side=Side.BILATERAL, region=Region.VENTRICLES, grade=2)
PATTERNS: tuple[tuple[str, tuple[Finding, ...]], ...] = (
    ("No abnormality is seen.", ()),
    ("There are severe white matter lesions.", (_LESIONS,)),
    ("There is moderate enlargement of the lateral ventricles.", (_VENTRICLES,)),
    (
        "There are severe white matter lesions. There is moderate enlargement of the lateral ventricles.",
        (_LESIONS, _VENTRICLES),
    ),
)
"""Report and findings by pattern number; its first bit is lesions, the second ventricles. None has a side, since toy
scans have no left and right."""

_FACTS = (
    ("What do ventricles hold?", "They hold cerebrospinal fluid."),
    ("What does white matter consist of?", "It consists of axons."),
    ("Where do radiologists state what they think?", "They state it in the impression."),
    ("What is a report written for?", "It is written for a colleague."),
)
VERSIONS = 4
"""Files of each pattern and split; samples share them."""
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Minimal chat template that marks the speakers, in the form of Qwen's."""
BOS, EOS = "<s>", "</s>"


def toy_samples(
    kind: Kind, split: str, count: int, folder: Path, most_scans: int, ending: str
) -> tuple[list[Sample], dict[str, int]]:
    """Samples of one kind, each of a subject of its own, and the files that they need, with their patterns.

    Args:
        kind: of the samples; every second one has two scans, if so many are allowed.
        split: part of all names, so that nothing is in two splits.
        count: how many.
        folder: where the scans will be.
        most_scans: of a sample.
        ending: of the files.
    """
    samples: list[Sample] = []
    needed: dict[str, int] = {}
    for number in range(count):
        name, pattern = f"{split}-{kind}-{number:02d}", number % len(PATTERNS)
        shown = 0 if kind == "text" else 1 + (most_scans > 1 and number % 2)
        # the scans of a document are of several patterns, those of a report or a question show the same
        patterns = [(pattern + step * (kind == "interleaved")) % len(PATTERNS) for step in range(shown)]
        versions = [(number // len(PATTERNS) + step) % VERSIONS for step in range(shown)]
        files = [f"{split}-{one}-{version}{ending}" for one, version in zip(patterns, versions, strict=True)]
        needed |= dict(zip(files, patterns, strict=True))
        content = _content(kind, patterns, number)
        scans = tuple(str(folder / file) for file in files)
        samples.append(Sample(id=name, kind=kind, subject=f"toy-{name}", scans=scans, **content))
    return samples, needed


def _content(kind: Kind, patterns: list[int], number: int) -> dict[str, Any]:
    if kind == "text":
        question, answer = _FACTS[number % len(_FACTS)]
        asked = f"Question {number + 1}. {question}"  # so that no two are the same
        return {"turns": (Turn(role="user", text=asked), Turn(role="assistant", text=answer))}
    report, findings = PATTERNS[patterns[0]]
    if kind == "pairs":
        return {"text": report, "findings": findings}
    if kind == "interleaved":
        parts = [f"{IMAGE} {PATTERNS[pattern][0]}" for pattern in patterns]
        return {"text": " ".join(["Heads seen today.", *parts])}
    rounds = [(f"{IMAGE * len(patterns)}What do the scans show?", report)]
    rounds += [("Is that normal?", "No, it is not." if findings else "Yes, it is.")] if number % 4 < 2 else []
    turns = [(Turn(role="user", text=asked), Turn(role="assistant", text=answer)) for asked, answer in rounds]
    return {"turns": sum(turns, ())}


def toy_tokenizer(samples: Iterable[Sample], *, begins: bool) -> PreTrainedTokenizerFast:
    """Make a byte-level tokenizer, which reads any text, with one token for each word of these samples.

    Args:
        samples: source of the words.
        begins: put a start token before each text, as LLaMA's and Gemma's tokenizers do.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = [BOS, EOS, "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=marks,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [text for sample in samples for text in (sample.text or "", *(turn.text for turn in sample.turns))]
    tokenizer.train_from_iterator([text.replace(IMAGE, "") for text in texts], trainer)
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, extra_special_tokens=marks[2:]
    )
    whole.chat_template = CHAT
    return whole
