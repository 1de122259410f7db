"""Documents: several scans and reports in one text, and what of it is learnt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from neuroflamingo.findings.vocabulary import Finding
from neuroflamingo.findings.wording import render_report
from neuroflamingo.model.tokens import END_OF_CHUNK, IMAGE, token_ids
from neuroflamingo.recipe.embedded_recipe import PromptSettings
from neuroflamingo.training.embedded.documents import Part, encode_documents
from neuroflamingo.training.embedded.imagined import draw_form, imagined_document
from neuroflamingo.training.embedded.language_model_stage import imagined_batch, train_tokenizer

MASS = Finding(kind="mass", side="left", region="insula", size_mm=12)
REPORT, NORMAL = render_report([MASS], 0, 0), render_report([], 0, 0)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(738, 10_000_000, PromptSettings(few_shot=0.3, follow_up=0.3))


@pytest.mark.slow
def test_a_document_is_what_a_prompt_and_its_answer_are(tokenizer: Any) -> None:
    parts = (Part(NORMAL, learnt="nothing"), Part(REPORT), Part(REPORT, scans=2, learnt="impression"))
    ids, mask, labels, weights = encode_documents(tokenizer, [parts, (Part(NORMAL),)], 4.0)
    whole = (
        f"{IMAGE}{NORMAL.text}{END_OF_CHUNK}{IMAGE}{REPORT.text}{END_OF_CHUNK}{IMAGE * 2}{REPORT.text}{END_OF_CHUNK}"
    )
    assert ids[0].tolist() == token_ids(tokenizer, whole)
    assert mask[1].sum() < mask[0].sum() == len(ids[0]) and (ids[1][mask[1] == 0] == tokenizer.pad_token_id).all()
    learnt = tokenizer.decode(ids[0][labels[0] != -100])
    impression = REPORT.text[REPORT.text.index("IMPRESSION:") + len("IMPRESSION:") :]
    assert learnt == REPORT.text + END_OF_CHUNK + impression + END_OF_CHUNK
    assert (labels[0][labels[0] != -100] == ids[0][labels[0] != -100]).all()
    assert ((weights > 0) == (labels != -100)).all() and (weights[0] == 4.0).any() and (weights[0] == 1.0).any()
    carried = tokenizer.decode(ids[1][weights[1] == 4.0])
    assert "normal" in carried.lower() and "TECHNIQUE" not in carried


def test_forms_are_drawn_by_their_shares() -> None:
    prompts = PromptSettings(few_shot=0.3, follow_up=0.5)
    drawn = [draw_form(prompts, np.random.default_rng(number)) for number in range(2000)]
    shares = {form: drawn.count(form) / len(drawn) for form in set(drawn)}
    assert abs(shares["few-shot"] - 0.3) < 0.04 and abs(shares["follow-up"] - 0.5) < 0.04
    assert {draw_form(PromptSettings(), np.random.default_rng(n)) for n in range(100)} == {"one scan"}
    with pytest.raises(ValueError, match="at most 1"):
        PromptSettings(few_shot=0.6, follow_up=0.5)
    assert [PromptSettings(few_shot=a, follow_up=b, examples=2).scans for a, b in ((0, 0), (0, 0.1), (0.1, 0.1))] == [
        1,
        2,
        3,
    ]


def test_imagined_documents_have_the_form_that_is_asked_for() -> None:
    rng = np.random.default_rng(0)
    few = imagined_document("few-shot", 2, rng)
    assert [part.scans for part in few] == [1, 1, 1] and all(part.learnt == "all" for part in few)
    follow_ups = [imagined_document("follow-up", 1, rng) for _ in range(40)]
    assert all(len(document) == 1 and document[0].scans == 2 for document in follow_ups)
    assert all("COMPARISON:" in document[0].report.text for document in follow_ups)
    single = [imagined_document("one scan", 1, rng) for _ in range(40)]
    assert all(len(document) == 1 and "COMPARISON" not in document[0].report.text.upper() for document in single)
    assert len({document[0].report.text.partition(":")[0] for document in single}) > 1  # house styles differ


def test_a_batch_depends_on_its_number_alone() -> None:
    prompts = PromptSettings(few_shot=0.5, follow_up=0.5)
    assert imagined_batch(prompts, 3, 1, 5) == imagined_batch(prompts, 3, 1, 5) != imagined_batch(prompts, 3, 1, 6)
    for number in range(4):
        assert len({(len(document), document[0].scans) for document in imagined_batch(prompts, 4, 0, number)}) == 1
