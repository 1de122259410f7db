"""Sequences: which tokens are learnt, which scans stay, and what is refused."""

from __future__ import annotations

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from neuroflamingo.checkpoints.local_models import find_model
from neuroflamingo.data.sequences import build_labels, encode_sample
from neuroflamingo.data.validation_set import prompt_batch
from neuroflamingo.model.processor import NeuroFlamingoProcessor
from neuroflamingo_preprocessing.errors import ConfigError, ScanError
from tests.neuroflamingo.data.samples import sample, tiny_processor

TOKENIZER = tiny_processor().tokenizer
IMAGE, EOC = TOKENIZER.convert_tokens_to_ids(["<image>", "<|endofchunk|>"])


def learnt(sequence) -> list[int]:
    return [int(label) for label in sequence.labels if label != -100]


def test_pairs_and_interleaved_as_upstream() -> None:
    pair = encode_sample(sample("pairs", "a", text="w1 w2", weight=3.0), TOKENIZER)
    assert pair.ids.tolist() == [IMAGE, 1, 2, EOC, 60] and pair.labels.tolist() == [-100, 1, 2, EOC, 60]
    assert (pair.scans, pair.weight, pair.cut, pair.learnt) == (("a",), 3.0, 0, 4)
    document = encode_sample(sample("interleaved", "a", "b", text="w1 <image> w3 <image> w4"), TOKENIZER)
    assert document.ids.tolist() == [1, IMAGE, 3, EOC, IMAGE, 4, EOC, 60]
    assert document.labels.tolist() == [-100, -100, 3, EOC, -100, 4, EOC, -100], "text before, and the end, are not"


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("w1 <image> <image> w3 <image> w4", [1, IMAGE, IMAGE, 3, EOC, IMAGE, 4, EOC, 60]),
        ("<image><image><image> w3", [IMAGE, IMAGE, IMAGE, 3, EOC, 60]),
        ("<image><|endofchunk|><image> w3", [IMAGE, EOC, IMAGE, 3, EOC, 60]),  # an end that the document has, stays
        ("<image> w3 <|endofchunk|> w4 <image><image> w5", [IMAGE, 3, EOC, 4, IMAGE, IMAGE, 5, EOC, 60]),
    ],
)
def test_scans_side_by_side_stay_so_as_in_prompts(text: str, ids: list[int]) -> None:
    scans = [f"scan{number}" for number in range(text.count("<image>"))]
    assert encode_sample(sample("interleaved", *scans, text=text), TOKENIZER).ids.tolist() == ids


@pytest.mark.parametrize(
    ("pattern", "before"), [("$A </s>", []), ("w59 $A </s>", [59]), ("w59 $A", [59]), ("w59 $A </s> </s>", [59])]
)
def test_what_a_tokenizer_adds_behind_a_text_is_left_out(pattern: str, before: list[int]) -> None:
    """A prompt that ends with an end token is over; a sample writes its own."""
    tokenizer = tiny_processor().tokenizer
    ends = [("w59", 59), ("</s>", 60)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=pattern, special_tokens=ends)
    assert tokenizer("w1")["input_ids"] == before + [1] + [60] * pattern.count("</s>")
    pair, document = sample("pairs", "a", text="w1 w2"), sample("interleaved", "a", text="w5 <image> w3")
    assert encode_sample(pair, tokenizer).ids.tolist() == [*before, IMAGE, 1, 2, EOC, 60]
    assert encode_sample(document, tokenizer).ids.tolist() == [*before, 5, IMAGE, 3, EOC, 60]
    talk = encode_sample(sample("instructions", "a", talk=["<image> w2", "w3 w4"]), tokenizer)
    assert talk.ids.tolist() == [*before, IMAGE, 2, 3, 4, EOC, 60] and learnt(talk) == [3, 4, EOC, 60]
    prompts = prompt_batch([pair], "plain", tokenizer)
    assert prompts["input_ids"].tolist() == [[*before, IMAGE]]
    batch = NeuroFlamingoProcessor(tokenizer)(["<image> w1 w2", "w1"])
    assert batch["input_ids"].tolist()[0] == [*before, IMAGE, 1, 2]
    assert batch["attention_mask"].tolist()[1] == [0, 0, *[1] * len(before), 1]


def test_of_talks_the_answers_and_their_ends_only() -> None:
    talk = sample("instructions", "a", talk=["w1 <image> w2", "w3 w4", "w5", "w6"])
    ends = {"plain": EOC, "question-answer": EOC, "multimodal-gpt": None}
    for template, end in ends.items():
        sequence = encode_sample(talk, TOKENIZER, template=template)
        expected = [3, 4, EOC, 6, EOC, 60] if end else [3, 4, 60, 6, 60]
        assert learnt(sequence) == expected, template
        assert int((sequence.ids == IMAGE).sum()) == 1


def test_cutting_never_leaves_an_image_without_its_scan() -> None:
    document = sample("interleaved", "a", "b", "c", text="w1 <image> w3 w4 <image> w5 w6 <image> w7")
    whole = encode_sample(document, TOKENIZER)
    for length in range(3, len(whole.ids) + 1):
        part = encode_sample(document, TOKENIZER, max_tokens=length)
        assert part.ids.tolist() == whole.ids[:length].tolist() and part.cut == len(whole.ids) - length
        assert part.scans == ("a", "b", "c")[: int((part.ids == IMAGE).sum())]
    two = encode_sample(document, TOKENIZER, max_scans=2)
    assert two.scans == ("a", "b") and two.ids.tolist() == [1, IMAGE, 3, 4, EOC, IMAGE, 5, 6, EOC]
    assert two.labels[-1] == EOC


def test_a_sequence_without_a_learnt_token_is_refused() -> None:
    talk = sample("text", id="talk7", talk=["w1 w2 w3 w4", "w5"])
    with pytest.raises(ScanError, match="talk7") as caught:
        encode_sample(talk, TOKENIZER, max_tokens=4)
    assert caught.value.exit_code == 65 and "max_tokens" in str(caught.value)
    with pytest.raises(ScanError, match="nothing is learnt"):
        encode_sample(sample("pairs", "a", "b", text="w1"), TOKENIZER, max_scans=1)


def test_a_tokenizer_that_cannot_say_where_its_tokens_are(monkeypatch) -> None:
    class Slow:
        eos_token = "</s>"
        is_fast = False

    with pytest.raises(ConfigError, match="Slow does not say"):
        encode_sample(sample("text", talk=["w1", "w2"]), Slow())


def test_labels_by_hand() -> None:
    ids = torch.tensor([[IMAGE, 1, 2, 3]])
    answers = torch.tensor([[True, False, True, True]])
    assert build_labels("instructions", ids, TOKENIZER, answers).tolist() == [[-100, -100, 2, 3]]
    assert build_labels("pairs", ids, TOKENIZER).tolist() == [[-100, 1, 2, 3]]


@pytest.mark.parametrize("template", ["plain", "question-answer", "multimodal-gpt"])
def test_a_prompt_has_the_tokens_that_training_showed(template: str) -> None:
    """With a real byte-pair tokenizer: what is asked is the beginning of what was learnt."""
    from neuroflamingo.data.templates import render

    tokenizer = NeuroFlamingoProcessor.from_pretrained(find_model("tiny-t1w")).tokenizer
    talk = sample("instructions", "a", talk=["<image>Is there a mass?", "No mass, é.", "And on the left?", "None."])
    sequence, rendered = encode_sample(talk, tokenizer, template=template), render(talk, template, tokenizer)
    prompt = tokenizer(rendered.prompt)["input_ids"]
    assert sequence.ids[: len(prompt)].tolist() == prompt
    assert bool((sequence.labels[len(prompt) :] != -100).all())
    spoken = tokenizer.decode([label for label in sequence.labels.tolist() if label != -100], skip_special_tokens=True)
    assert "".join(spoken.split()) == "Nomass,é.None."
