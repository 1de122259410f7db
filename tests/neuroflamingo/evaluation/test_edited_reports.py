"""What scores reward: four reports, a correct paraphrase, and edits that make them wrong.

Word overlap ranks every wrong edit, and even a constant report, near or above the paraphrase; our score must not.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from neuroflamingo.evaluation.scoring import score_reports
from neuroflamingo.evaluation.text_metrics import text_overlap
from neuroflamingo.findings.parsing import parse_report

REPORTS = (
    (
        "FINDINGS: There is a hypointense mass in the right frontal lobe measuring 34 mm. No infarct. No hemorrhage. "
        "The white matter is normal. The ventricles are not enlarged. No atrophy.\n"
        "IMPRESSION: Mass in the right frontal lobe.",
        "FINDINGS: On the right, a dark neoplasm of about 3.4 cm occupies frontal tissue. Neither old strokes nor "
        "bleeds can be identified, and cerebral volume, CSF spaces and white matter look unremarkable.\n"
        "IMPRESSION: Right-sided frontal tumor.",
    ),
    (
        "FINDINGS: A chronic infarct of low signal is present in the left parietal lobe, 41 mm in size. There is no "
        "mass. There is no hemorrhage. Mild white matter lesions are seen. Ventricular size is normal. Brain volume "
        "is normal.\nIMPRESSION: Chronic infarct of the left parietal lobe. Mild white matter lesions.",
        "FINDINGS: Old stroke: encephalomalacia, T1-dark, left parietal, spanning 4.1 cm. Slight leukoaraiosis. Free "
        "of tumors or blood products; neither ventriculomegaly nor parenchymal loss.\n"
        "IMPRESSION: Sequela of a left-sided parietal stroke with minor small-vessel disease.",
    ),
    (
        "FINDINGS: No infarct, mass or hemorrhage. There are no white matter lesions. The lateral ventricles are "
        "moderately enlarged. There is atrophy of the left temporal lobe. A hyperintense hematoma of 12 mm lies in the "
        "right thalamus.\n"
        "IMPRESSION: Moderate ventricular enlargement. Left temporal lobe atrophy. Right thalamus hematoma.",
        "FINDINGS: T1-bright bleed, 1.2 cm, thalamic, on the right. Intermediate ventriculomegaly; shrinkage on the "
        "left at the temporal pole. Neoplasm, stroke and leukoaraiosis: none.\n"
        "IMPRESSION: Thalamic bleed on the right. Ventriculomegaly, moderate. Shrunken temporal pole, left.",
    ),
    (
        "FINDINGS: No mass. No hemorrhage. A dark remote infarct measuring 15 mm is seen in the left cerebellum. No "
        "white matter lesions. The ventricles are normal. Brain volume is preserved.\n"
        "IMPRESSION: Remote infarct of the left cerebellum.",
        "FINDINGS: Tiny old stroke, 1.5 cm and hypointense, within the cerebellar hemisphere on the left; otherwise "
        "unremarkable study without tumor or bleeding.\n"
        "IMPRESSION: Previous cerebellar stroke, left-sided.",
    ),
)
NORMAL = (
    "FINDINGS: No infarct, mass or hemorrhage. There are no white matter lesions. The ventricles are normal. Brain "
    "volume is preserved.\nIMPRESSION: Normal brain MRI."
)
REGIONS = {"frontal": "occipital", "parietal": "temporal", "temporal": "frontal", "thalamus": "insula"}
REGIONS |= {"cerebellum": "brainstem"}
SIDES = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
SIGNALS = {"hypointense": "hyperintense", "hyperintense": "hypointense", "low": "high", "dark": "bright"}


def swapped(text: str, words: dict[str, str]) -> str:
    return re.sub(r"\b(" + "|".join(words) + r")\b", lambda word: words[word[0]], text)


def sizes_tripled(text: str) -> str:
    return re.sub(r"\d+(?= mm)", lambda size: str(3 * int(size[0])), text)


def negation_removed(text: str) -> str:
    """The first "no" before a focal class becomes "a"."""
    return re.sub(r"\b(There is no|No)(?= (?:mass|infarct|hemorrhage))", _affirmed, text, count=1)


def _affirmed(found: re.Match[str]) -> str:
    return "There is a" if "There" in found[0] else "A"


def mass_hallucinated(text: str) -> str:
    return text.replace("\nIMPRESSION:", " There is a 25 mm mass in the right insula.\nIMPRESSION: Right insula mass.")


WRONG: dict[str, Callable[[str], str]] = {
    "left and right swapped": lambda text: swapped(text, SIDES),
    "regions swapped": lambda text: swapped(text, REGIONS),
    "sizes x 3": sizes_tripled,
    "one negation removed": negation_removed,
    "signal inverted": lambda text: swapped(text, SIGNALS),
    "mass hallucinated": mass_hallucinated,
    "constant normal report": lambda text: NORMAL,
}


def measured() -> dict[str, dict[str, float]]:
    """Mean figures over the four reports for the original, its paraphrase and every edit."""
    texts = {"none": [report for report, _ in REPORTS], "correct paraphrase": [other for _, other in REPORTS]}
    texts |= {name: [edit(report) for report, _ in REPORTS] for name, edit in WRONG.items()}
    truth = [parse_report(report).findings for report, _ in REPORTS]
    rows = {}
    for name, edited in texts.items():
        overlaps = [text_overlap([report], [text]) for (report, _), text in zip(REPORTS, edited, strict=True)]
        row = {key: sum(overlap[key] for overlap in overlaps) / len(overlaps) for key in ("bleu4", "rouge_l")}
        scores = score_reports(truth, edited, resamples=10)
        row |= {key: scores[key] or 0.0 for key in ("finding_f1", "full_finding_f1", "detail_f1")}
        rows[name] = row
    return rows


@pytest.mark.parametrize("name", WRONG)
def test_every_edit_edits_every_report(name: str) -> None:
    assert all(WRONG[name](report) != report for report, _ in REPORTS)


def test_our_score_ranks_the_paraphrase_above_every_wrong_edit() -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    rows = measured()
    columns = list(rows["none"])
    print("\n| edit | " + " | ".join(columns) + " |\n| --- |" + " --- |" * len(columns))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{row[column]:.3f}" for column in columns) + " |")
    assert rows["none"]["detail_f1"] == 1.0
    assert rows["correct paraphrase"]["detail_f1"] >= 0.95
    for name in WRONG:
        assert rows[name]["detail_f1"] < rows["correct paraphrase"]["detail_f1"] - 0.05, name
        if name != "constant normal report":
            assert rows[name]["bleu4"] > rows["correct paraphrase"]["bleu4"] + 0.3, name


def test_each_paraphrase_beats_the_edits_of_its_own_report() -> None:
    for report, paraphrase in REPORTS:
        truth = [parse_report(report).findings]
        right = score_reports(truth, [paraphrase], resamples=10)["detail_f1"] or 0.0
        for name, edit in WRONG.items():
            assert (score_reports(truth, [edit(report)], resamples=10)["detail_f1"] or 0.0) < right, (name, report)
