"""What is dropped and why, and subjects in two splits."""

from __future__ import annotations

import pytest

from neuroflamingo.data.filters import check_leaks, find_leaks, keep
from neuroflamingo.data.manifest import Sample, Turn
from neuroflamingo.model.tokens import IMAGE
from neuroflamingo_preprocessing.errors import ScanError


def pair(name: str, text: str = "No finding.", scan: str | None = None, subject: str | None = None) -> Sample:
    return Sample(id=name, kind="pairs", scans=(scan or f"/{name}.nii",), text=text, subject=subject)


def talk(name: str, *answers: str) -> Sample:
    turns = [turn for a in answers for turn in (Turn(role="user", text="Why?"), Turn(role="assistant", text=a))]
    return Sample(id=name, kind="text", turns=tuple(turns))


def test_short_answers_are_dropped_by_the_words_that_are_learnt() -> None:
    document = f"many words that are shown and not learnt {IMAGE}<|endofchunk|>two words"
    samples = [
        pair("one", "Normal."),
        pair("three", "No  acute\nfinding."),
        talk("short", "Yes.", "No."),
        talk("long", "Yes.", "Because it is so."),
        Sample(id="document", kind="interleaved", scans=("/a",), text=document),
    ]
    kept, dropped = keep(samples, min_answer_words=3)
    assert [sample.id for sample in kept] == ["three", "long"]
    assert dropped.short == ("one", "short", "document") and dropped.as_dict() == {"short answers": 3}
    assert keep(samples, min_answer_words=2)[1].short == ("one", "short")
    assert keep(samples)[0] == samples and not keep(samples)[1]


def test_duplicates_have_the_same_scans_and_the_same_text() -> None:
    samples = [
        pair("a", "No finding.", "/a"),
        pair("again", "No   finding.", "/a"),
        pair("other-head", "No finding.", "/b"),
        pair("other-text", "A mass.", "/a"),
        talk("t", "Yes."),
        talk("t-again", "Yes."),
        talk("t-other", "Yes.", "Yes."),
    ]
    kept, dropped = keep(samples)
    assert dropped.repeated == ("again", "t-again") and dropped.as_dict() == {"duplicates": 2} and len(dropped) == 2
    assert [sample.id for sample in kept] == ["a", "other-head", "other-text", "t", "t-other"]
    assert keep(samples, drop_duplicates=False)[0] == samples


def test_a_subject_in_two_splits_is_an_error_that_names_it() -> None:
    train = [pair("1", subject="sub-01"), pair("2", subject="sub-02"), pair("3", subject="03"), talk("t", "Yes.")]
    validation = [pair("4", subject="sub-04"), pair("5", subject="01"), pair("6", subject="sub-03")]
    with pytest.raises(ScanError, match="subjects in both splits: 03, sub-01") as caught:
        check_leaks(train, validation)
    assert caught.value.exit_code == 65
    assert "sub-02" not in str(caught.value) and "sub-04" not in str(caught.value)
    assert not check_leaks(train, validation[:1]).subjects


def test_a_scan_in_two_splits_is_found_where_no_subject_is_named() -> None:
    train, validation = [pair("1", scan="/a"), pair("2")], [pair("3", "A mass.", scan="/a"), pair("4")]
    with pytest.raises(ScanError, match="validation samples with scans from the training data: 3"):
        check_leaks(train, validation)
    assert find_leaks(train, validation).nameless == 4
    same = find_leaks([pair("1", subject="s", scan="/a")], [pair("2", subject="s", scan="/a")])
    assert same.subjects == ("s",) and not same.shared, "told once, by its subject"
