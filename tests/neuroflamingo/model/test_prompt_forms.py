"""What a model was trained to be shown, and the refusal of everything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from neuroflamingo.model.config import NeuroFlamingoConfig
from neuroflamingo.model.folder import read_prompts
from neuroflamingo.model.processor import NeuroFlamingoProcessor
from neuroflamingo.model.prompt_forms import PromptShape, TrainedPrompts, check_prompt
from neuroflamingo_preprocessing.errors import ConfigError, ModelError
from tests.tiny import tiny_model, tiny_scans

ONE = TrainedPrompts()
ALL = TrainedPrompts(max_examples=3, max_scans=2, forms=("one scan", "few-shot", "follow-up"))
SHOT = "<image>No mass.<|endofchunk|>"
FORMS = {
    "no scan at all": ("", 0, 0, True, True),
    "<image>": ("one scan", 0, 1, True, True),
    "<image> FINDINGS:": ("one scan", 0, 1, True, True),
    "<image>No mass.<|endofchunk|>": ("one scan", 0, 1, True, True),  # a whole training text
    "<image><image>": ("follow-up", 0, 2, False, True),
    "<image><image><image>": ("follow-up", 0, 3, False, False),
    f"{SHOT}<image>": ("few-shot", 1, 1, False, True),
    f"{SHOT * 3}<image>": ("few-shot", 3, 1, False, True),
    f"{SHOT * 4}<image>": ("few-shot", 4, 1, False, False),
    f"{SHOT}<image><image>": ("few-shot follow-up", 1, 2, False, False),
}


@pytest.mark.parametrize("prompt", FORMS)
def test_a_prompt_is_held_against_what_the_model_was_trained_for(prompt: str) -> None:
    form, examples, scans, by_one, by_all = FORMS[prompt]
    shape = PromptShape.of(prompt)
    assert (shape.form or "", shape.examples, shape.scans) == (form, examples, scans)
    for trained, taken in ((None, True), (ONE, by_one), (ALL, by_all)):
        if taken:
            assert check_prompt(prompt, trained) is None
            continue
        with pytest.raises(ModelError, match="not trained for a prompt like this") as caught:
            check_prompt(prompt, trained)
        assert caught.value.exit_code == 65 and "--force" in str(caught.value.hint)
        assert caught.value.seen == str(shape) and caught.value.expected == str(trained)
        forced = check_prompt(prompt, trained, force=True)
        assert forced == f"Forced: the prompt shows the model {shape}, and it was trained for {trained} only."


def test_the_words_of_the_records() -> None:
    assert str(ONE) == "1 scan and no example"
    assert str(ALL) == ("1 scan and no example; or 1 scan after 1 to 3 examples; or 2 scans of one head and no example")
    assert str(PromptShape.of(f"{SHOT * 2}<image>")) == "1 scan after 2 examples"


@pytest.mark.parametrize(
    "values",
    [
        {"max_examples": 2},
        {"forms": ["one scan", "few-shot"]},
        {"max_scans": 2},
        {"forms": ["follow-up"]},
        {"max_scans": 0},
        {"forms": ["two scans"]},
        {"examples": 1},
    ],
)
def test_records_that_contradict_themselves(values: dict) -> None:
    with pytest.raises(ValidationError):
        TrainedPrompts.model_validate(values)
    with pytest.raises(ConfigError, match="the config"):
        NeuroFlamingoConfig(resampler={"dim": 16}, prompts=values)


def test_the_record_survives_saving_and_loading(tmp_path: Path) -> None:
    model, processor = tiny_model("llama")
    assert model.config.prompts is None and processor.prompts is None, "what nobody recorded is not known"
    model.config.prompts = ALL.model_dump(mode="json")
    for place in (tmp_path / "a", tmp_path / "b"):
        model.save_pretrained(place)
        processor.save_pretrained(place)
        assert read_prompts(place) == ALL
        model = type(model).from_pretrained(place)
        assert model.config.prompts == ALL.model_dump(mode="json")
        assert NeuroFlamingoProcessor.from_pretrained(place).prompts == ALL
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"prompts": {"max_scan": 2}}))
    with pytest.raises(ConfigError, match=r"prompts in .*config.json"):
        read_prompts(place)


def test_the_processor_refuses_what_the_model_was_not_trained_for() -> None:
    _, processor = tiny_model("llama")
    scans = list(tiny_scans(1, 2)[0])
    plain = processor("<image> <image>", scan_tokens=scans)
    processor.prompts = ONE
    for texts, given in (("<image> <image>", scans), (["<image>", f"{SHOT} <image>"], [scans[:1], scans])):
        with pytest.raises(ModelError, match="not trained"):
            processor(texts, scan_tokens=given)
    forced = processor("<image> <image>", scan_tokens=scans, force=True)
    assert (forced["input_ids"] == plain["input_ids"]).all()
    assert processor(["<image> w1", "w2"], scan_tokens=[scans[:1], []])["scan_mask"].tolist() == [[True], [False]]


def test_the_embedded_model_says_what_it_was_trained_for() -> None:
    import neuroflamingo

    folder = Path(neuroflamingo.__file__).parent / "pretrained" / "tiny-t1w"
    trained = read_prompts(folder)
    assert trained is not None and "one scan" in trained.forms
