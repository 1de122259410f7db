"""Templates: what is shown, what is learnt, in which form."""

from __future__ import annotations

import pytest

from neuroflamingo.data.templates import PREAMBLE, TEMPLATES, Rendered, render
from neuroflamingo_preprocessing.errors import ConfigError, ModelError
from tests.neuroflamingo.data.samples import CHATML, sample, tiny_processor

EOC = "<|endofchunk|>"


class Words:
    """What a template asks of a tokenizer."""

    eos_token = "</s>"
    chat_template = None


def shown(rendered: Rendered) -> str:
    """The text, what is learnt in brackets."""
    return "".join(f"[{piece.text}]" if piece.learnt else piece.text for piece in rendered.pieces)


def test_pairs_and_interleaved_have_one_form() -> None:
    pair = sample("pairs", "a", "b", text=" No mass.\n")
    document = sample("interleaved", "a", "b", text="Before. <image> A mass.  <image>\nNone now.")
    for template in ("plain", "multimodal-gpt", "question-answer"):
        assert shown(render(pair, template, Words())) == f"<image><image>[No mass.{EOC}</s>]"
        assert shown(render(document, template, Words())) == (
            f"Before.<image>[A mass.{EOC}]<image>[None now.{EOC}]</s>"
        )
    marked = sample("interleaved", "a", "b", text=f"<image> A mass. {EOC} Of course. <image> None now. {EOC} The end.")
    assert shown(render(marked, "plain", Words())) == (
        f"<image>[A mass.{EOC}]Of course.<image>[None now.{EOC}]The end.</s>"
    )


TALK = sample("instructions", "a", "b", talk=["<image>\nIs <image> it?", "Yes.", "Where?", "On the left."])
ONLY_TEXT = sample("text", talk=["Is it?", "Yes."])


@pytest.mark.parametrize(
    ("template", "scans", "text"),
    [
        (
            "plain",
            f"<image><image>Is it?\n[Yes.{EOC}]Where?\n[On the left.{EOC}</s>]",
            f"Is it?\n[Yes.{EOC}</s>]",
        ),
        (
            "question-answer",
            f"<image><image>Question: Is it? Answer:[ Yes.{EOC}]Question: Where? Answer:[ On the left.{EOC}</s>]",
            f"Question: Is it? Answer:[ Yes.{EOC}</s>]",
        ),
        (
            "multimodal-gpt",
            f"{PREAMBLE}### Image:\n<image><image>\n\n### Instruction:\nIs it?\n\n### Response:\n[Yes.</s>]\n\n"
            "### Instruction:\nWhere?\n\n### Response:\n[On the left.</s>]",
            f"{PREAMBLE}### Instruction:\nIs it?\n\n### Response:\n[Yes.</s>]",
        ),
    ],
)
def test_talks(template: str, scans: str, text: str) -> None:
    assert shown(render(TALK, template, Words())) == scans
    assert shown(render(ONLY_TEXT, template, Words())) == text
    prompt = render(ONLY_TEXT, template, Words()).prompt
    assert text.startswith(prompt + "[") and "Yes" not in prompt


def test_chat_is_the_tokenizers_own() -> None:
    tokenizer = tiny_processor().tokenizer
    tokenizer.chat_template = CHATML
    rendered = render(TALK, "chat", tokenizer)
    assert shown(rendered) == (
        "<|start|>user\n<image><image>\nIs it?<|stop|>\n<|start|>assistant\n[Yes.<|stop|>]\n"
        "<|start|>user\nWhere?<|stop|>\n<|start|>assistant\n[On the left.<|stop|>]\n"
    )
    assert not rendered.bos and rendered.prompt.endswith("Where?<|stop|>\n<|start|>assistant\n")


def test_chat_templates_that_end_each_talk() -> None:
    tokenizer = tiny_processor().tokenizer
    tokenizer.chat_template = CHATML + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
    assert shown(render(TALK, "chat", tokenizer)) == (
        "<|start|>user\n<image><image>\nIs it?<|stop|>\n<|start|>assistant\n[Yes.<|stop|>]\n"
        "<|start|>user\nWhere?<|stop|>\n<|start|>assistant\n[On the left.<|stop|>\n</s>]"
    )


def test_a_chat_template_that_rewrites_what_was_said() -> None:
    tokenizer = tiny_processor().tokenizer
    tokenizer.chat_template = "{% for m in messages %}{{ loop.revindex ~ m['content'] }}{% endfor %}"
    with pytest.raises(ConfigError, match="changes a turn when") as caught:
        render(TALK, "chat", tokenizer)
    assert "2 rounds" in str(caught.value)


def test_templates_that_there_are_not() -> None:
    with pytest.raises(ConfigError, match="no template 'plane'") as caught:
        render(TALK, "plane", Words())
    assert all(name in str(caught.value) for name in TEMPLATES) and caught.value.exit_code == 78
    with pytest.raises(ConfigError, match="no chat template"):
        render(TALK, "chat", Words())


@pytest.mark.slow
@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 10 ** (10 ** 9) }}",
        "{{ 'a' * 10 ** 12 }}",
    ],
)
def test_a_chat_template_that_does_not_come_to_an_end_is_refused(template: str) -> None:
    tokenizer = tiny_processor().tokenizer
    tokenizer.chat_template = template + CHATML
    with pytest.raises(ModelError, match="does not come to an end") as caught:
        render(TALK, "chat", tokenizer)
    assert caught.value.exit_code == 65


@pytest.mark.parametrize(
    "template", ["{{ nothing.at.all }}", "{% for", "{{ raise_exception('no') }}", "{{ ().__class__.__mro__ }}"]
)
def test_a_chat_template_that_fails_names_the_tokenizer(template: str) -> None:
    tokenizer = tiny_processor().tokenizer
    tokenizer.chat_template = template + CHATML
    with pytest.raises(ModelError, match=r"chat_template in .* cannot be used") as caught:
        render(TALK, "chat", tokenizer)
    assert caught.value.exit_code == 65
