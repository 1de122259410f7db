"""Anybody's reports against anybody's references: what is counted, what is said beside, and the paired test."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from neuroflamingo.evaluation.paired_test import differences
from neuroflamingo.evaluation.report_texts import NamedText
from neuroflamingo.evaluation.text_scores import TextScores, score_texts
from neuroflamingo.findings.vocabulary import Finding
from neuroflamingo_preprocessing.errors import ScanError, UsageError
from tests.neuroflamingo.evaluation.test_edited_reports import NORMAL, REPORTS

REFERENCES = {f"c{at}": NamedText(f"c{at}", text) for at, (text, _) in enumerate(REPORTS)}
PARAPHRASES = [NamedText(f"c{at}", text) for at, (_, text) in enumerate(REPORTS)]


SIDES = {"left": "right", "right": "left"}


def swapped(text: str) -> str:
    return re.sub("left|right", lambda side: SIDES[side[0].lower()], text, flags=re.IGNORECASE)


def score(texts: list[NamedText], references: dict[str, NamedText] = REFERENCES, **options: object) -> TextScores:
    return score_texts(references, texts, resamples=100, **options)  # type: ignore[arg-type]


def test_a_paraphrase_is_right_and_a_swapped_side_is_wrong_whatever_words_say() -> None:
    right = score(PARAPHRASES)
    wrong = score([NamedText(name, swapped(one.text)) for name, one in REFERENCES.items()])
    assert right.values["full_finding_f1"] == 1.0 and right.values["wrong_side_rate"] == 0.0
    assert wrong.values["wrong_side_rate"] == 1.0 and wrong.values["finding_f1"] == 1.0
    assert (wrong.values["bleu4"] or 0) > 0.8 > 0.1 > (right.values["bleu4"] or 0)
    apart = differences(right, wrong)["full_finding_f1"]
    assert apart and apart.value > 0 and apart.interval and apart.interval[0] > 0 and apart.p == pytest.approx(2 / 101)
    back = differences(wrong, right)["full_finding_f1"]
    assert back and back.value == -apart.value and back.p == apart.p
    same = differences(right, score(list(reversed(PARAPHRASES))))
    assert all(one is None or (one.value == 0 and one.p == 1.0) for one in same.values())


def test_labels_are_those_of_the_findings() -> None:
    table = score([NamedText(name, NORMAL) for name in REFERENCES]).labels
    assert table.labels["mass"]["sensitivity"] == 0.0 and table.labels["mass"]["specificity"] == 1.0
    assert table.labels["chronic infarct"]["false_negative"] == 2


def test_findings_beside_the_classes_have_a_table_of_their_own() -> None:
    texts = {"a": "FINDINGS: Glioma in the left frontal lobe with edema. No cyst.", "b": "FINDINGS: Arachnoid cyst."}
    references = {name: NamedText(name, text) for name, text in texts.items()}
    scores = score([NamedText("a", "FINDINGS: Mass in the left frontal lobe."), NamedText("b", texts["b"])], references)
    named = scores.to_json()["named"]["labels"]
    assert named["mass"]["f1"] == named["arachnoid cyst"]["f1"] == 1.0, "a glioma is a mass"
    assert named["glioma"]["sensitivity"] == named["edema"]["sensitivity"] == 0.0 and "aneurysm" not in named
    assert scores.values["named_micro_f1"] == pytest.approx(2 * 3 / (2 * 3 + 2))
    assert scores.values["full_finding_f1"] == 1.0


def test_what_has_two_names_is_one_finding_of_its_class() -> None:
    one = NamedText("a", "Old stroke in the left parietal lobe: encephalomalacia of 4 cm.")
    assert [(str(f.kind), f.size_mm) for f in one.findings] == [("chronic infarct", 40.0)]
    assert [str(f.kind) for f in NamedText("a", "Left frontal glioma and a meningioma.").findings] == ["mass", "mass"]
    two = NamedText("a", "Infarct in the left parietal lobe, 9 mm. Infarct in the left parietal lobe, 20 mm.")
    assert len(two.findings) == 2


def test_another_language_is_counted_not_taken_for_normal() -> None:
    german = "Befund: Raumforderung im linken Frontallappen, keine Blutung, das Ventrikelsystem ist nicht erweitert."
    scores = score([NamedText("c0", german), *PARAPHRASES[1:]])
    assert any("1 of 4 reports are not in English" in note for note in scores.notes)
    assert scores.values["finding_recall"] == pytest.approx(6 / 7) and scores.pairs[0].coverage == 0.0
    other = score([PARAPHRASES[0]], {"c0": NamedText("c0", german)})
    assert other.values["finding_f1"] is None and any("could not be read" in note for note in other.notes)


def test_a_scan_with_another_finding_is_not_normal() -> None:
    references = {"a": NamedText("a", "FINDINGS: Aneurysm of the left MCA."), "b": NamedText("b", NORMAL)}
    text = "FINDINGS: Mass in the left frontal lobe."
    scores = score([NamedText("a", text), NamedText("b", NORMAL)], references)
    assert scores.values["hallucination_on_normals"] == 0.0 and scores.values["hallucinations_per_case"] == 0.5


def test_a_denied_class_is_a_false_negation() -> None:
    text = "FINDINGS: Mass in the left frontal lobe. No hemorrhage."
    scores = score([NamedText("a", "FINDINGS: No mass. No metastasis.")], {"a": NamedText("a", text)})
    assert scores.values["false_negation_rate"] == 1.0
    scores = score([NamedText("a", "FINDINGS: No metastasis.")], {"a": NamedText("a", text)})
    assert scores.values["false_negation_rate"] == 0.0


def test_known_findings_take_the_place_of_the_text() -> None:
    known = (Finding.model_validate({"kind": "mass", "side": "right", "region": "frontal lobe"}),)
    scores = score([PARAPHRASES[0]], {"c0": NamedText("c0", "", known)})
    assert scores.values["full_finding_f1"] == 1.0 and scores.values["bleu4"] is None
    signal = known[0].model_copy(update={"signal": "low"})
    assert score([PARAPHRASES[0]], {"c0": NamedText("c0", "", (signal,))}).values["detail_f1"] == 1.0
    listed = score([NamedText("c0", "", known)], {"c0": REFERENCES["c0"]})
    assert listed.values["full_finding_f1"] == 1.0 and listed.values["parse_coverage"] is None


def test_certainty_is_scored_on_what_was_found() -> None:
    sure, unsure = "FINDINGS: Mass in the left frontal lobe.", "FINDINGS: Possible mass in the left frontal lobe."
    scores = score([NamedText("a", unsure), NamedText("b", sure)], {n: NamedText(n, sure) for n in "ab"})
    assert scores.values["certainty_accuracy"] == 0.5 and scores.values["full_finding_f1"] == 1.0


def test_a_reference_that_cannot_be_read_is_not_taken_for_a_normal_one() -> None:
    unread = NamedText("x", "Bla bla bla.")
    assert not unread.was_read
    scores = score(
        [*PARAPHRASES, NamedText("x", "FINDINGS: Mass in the left frontal lobe.")], REFERENCES | {"x": unread}
    )
    assert scores.values["hallucinations_per_case"] == 0.0 and scores.values["hallucination_on_normals"] is None
    assert scores.labels.labels["mass"]["false_positive"] == 0
    assert any("1 of 5 references could not be read" in note for note in scores.notes)


def test_ids_that_do_not_join_are_all_in_one_message() -> None:
    with pytest.raises(ScanError) as raised:
        score([PARAPHRASES[0], NamedText("zz", "No mass."), *(NamedText(f"n{at}", "No mass.") for at in range(40))])
    words = str(raised.value)
    assert "41 ids without a reference: zz, n0" in words and "and 21 more" in words
    assert "3 ids of references without a report: c1, c2, c3" in words and "--allow-missing" in words


def test_a_missing_report_may_count_as_an_empty_one() -> None:
    scores = score([PARAPHRASES[0], NamedText("zz", "No mass.")], allow_missing=True)
    assert scores.values["finding_recall"] == pytest.approx(1 / 7) and len(scores.pairs) == 4
    assert "3 of 4 reports are empty, 3 of them missing" in scores.notes[1]
    assert "1 reports without a reference were left out" in scores.notes[2]
    with pytest.raises(ScanError):
        score([NamedText("zz", "No mass.")], allow_missing=True)


def test_the_same_file_twice_is_noticed() -> None:
    assert any("word for word" in note for note in score(list(REFERENCES.values())).notes)
    assert not any("word for word" in note for note in score(PARAPHRASES).notes)


def test_intervals_draw_persons() -> None:
    """Ten scans of one person say no more than one: two persons, one always right and one always wrong."""
    text = "FINDINGS: Mass in the left frontal lobe."
    references = {f"a{at}": NamedText(f"a{at}", text, person="a") for at in range(10)}
    references |= {f"b{at}": NamedText(f"b{at}", text, person="b") for at in range(10)}
    texts = [NamedText(name, text if one.person == "a" else NORMAL) for name, one in references.items()]
    scores = score(texts, references)
    assert scores.values["finding_recall"] == 0.5 and scores.persons == ("a", "b")
    assert scores.findings.intervals["finding_recall"] == (0.0, 1.0) == scores.interval_of("finding_recall")
    assert scores.to_json()["persons"] == 2 and scores.to_json()["findings"]["cases"] == 20


def test_other_cases_are_not_compared() -> None:
    with pytest.raises(UsageError, match="same cases"):
        differences(score(PARAPHRASES), score([PARAPHRASES[0]], {"c0": REFERENCES["c0"]}))


def test_the_table_of_cases(tmp_path: Path) -> None:
    scores = score([NamedText("c0", swapped(REPORTS[0][1])), *PARAPHRASES[1:]])
    scores.write_csv(tmp_path / "cases.csv")
    rows = list(csv.DictReader((tmp_path / "cases.csv").read_text().splitlines()))
    assert [row["id"] for row in rows] == list(REFERENCES)
    assert [row["wrong_side"] for row in rows] == ["1.0", "0.0", "0.0", "0.0"]
    assert rows[0]["true_findings"] == "right frontal lobe mass 34 mm" and float(rows[0]["rouge_l"]) < 0.5
