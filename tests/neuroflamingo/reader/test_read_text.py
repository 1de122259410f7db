"""The reader on other people's words: findings, negation, doubt, places, sizes, sections, and what it does not know."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from neuroflamingo.findings.house_styles import TRAINED_STYLES, UNSEEN_STYLES, render_in_style
from neuroflamingo.findings.vocabulary import Certainty, Finding, FindingClass, Region, Side
from neuroflamingo.findings.wording import render_report
from neuroflamingo.reader.brain_findings import BRAIN_FINDINGS, OTHER
from neuroflamingo.reader.brain_report import BrainReport, ReadFinding
from neuroflamingo.reader.phrase_table import finding_of
from neuroflamingo.reader.read_text import read_text
from neuroflamingo_preprocessing.errors import ScanError
from tests.neuroflamingo.findings.finding_strategies import finding_lists
from tests.neuroflamingo.findings.paraphrases import FIRST, HELD_OUT, SECOND

HERE = Path(__file__).parent
ROWS = [json.loads(line) for line in (HERE / "paraphrases.jsonl").read_text().splitlines()]
THIRD_ROWS = [json.loads(line) for line in (HERE / "third_paraphrases.jsonl").read_text().splitlines()]
SECOND_ROWS = [json.loads(line) for line in (HERE / "second_paraphrases.jsonl").read_text().splitlines()]
MAYBE, SURE = Certainty.POSSIBLE, Certainty.DEFINITE


def half(text: str) -> str:
    """The half of the paraphrases that a text is in: by its hash, before any rule was written."""
    return "held" if hashlib.sha256(text.encode()).digest()[0] % 2 else "development"


def stated(finding: ReadFinding) -> tuple[object, ...]:
    size = finding.size_mm
    return finding.name, finding.side, tuple(sorted(map(str, finding.regions))), size, str(finding.certainty)


def expected(row: dict) -> tuple[object, ...]:
    return row["name"], row["side"], tuple(sorted(row["regions"])), row["size_mm"], row["certainty"]


def scored(rows: list[dict]) -> tuple[float, float]:
    """Share of findings right in every attribute, invented ones counted as wrong; share on the wrong side."""
    right = wanted = invented = wrong_side = 0
    for row in rows:
        want, got = Counter(map(expected, row["findings"])), Counter(map(stated, read_text(row["text"]).findings))
        right += (want & got).total()
        wanted += want.total()
        invented += max(0, got.total() - want.total())
        left = {(words[0], words[1]) for words in got - want}
        wrong_side += sum((words[0], {"left": "right", "right": "left"}.get(words[1])) in left for words in want - got)
        if want != got:
            print(
                f"\n{row['text']}\n  expected {sorted(want - got, key=str)}\n  read     {sorted(got - want, key=str)}"
            )
    return right / (wanted + invented), wrong_side / wanted


@pytest.mark.parametrize(
    ("rows", "least"),
    [
        ([row for row in ROWS if half(row["text"]) == "development"], 0.95),
        ([row for row in ROWS if half(row["text"]) == "held"], 0.95),
        (SECOND_ROWS, 0.9),
        (THIRD_ROWS, 0.9),
    ],
    ids=["development", "held", "second", "third"],
)
def test_paraphrases(rows: list[dict], least: float) -> None:
    """Rules were changed with all in view; docs/read_report.md has the first scores of the latter three."""
    assert len(rows) >= 30
    right, wrong_side = scored(rows)
    assert right >= least
    assert wrong_side <= 0.01


def test_what_paraphrases_deny() -> None:
    rows = [row for row in ROWS + SECOND_ROWS + THIRD_ROWS if row["absent"]]
    assert len(rows) > 5
    for row in rows:
        assert set(row["absent"]) <= read_text(row["text"]).absent, row["text"]


def in_class(finding: Finding) -> tuple[object, ...]:
    return finding.kind, finding.side, finding.region, finding.size_mm, finding.grade, finding.certainty


def test_earlier_paraphrases_in_the_six_classes() -> None:
    cases = FIRST + SECOND + HELD_OUT
    right = [Counter(map(in_class, read_text(text).classes)) == Counter(map(in_class, want)) for text, want in cases]
    assert sum(right) >= 0.95 * len(cases)


@settings(max_examples=150, deadline=None)
@given(findings=finding_lists(), seed=st.integers(0, 10_000))
def test_rendered_reports_come_back(findings: list[Finding], seed: int) -> None:
    report = read_text(render_report(findings, seed).text)
    assert Counter(map(in_class, report.classes)) == Counter(map(in_class, findings))
    assert report.contradictions == ()


@settings(max_examples=60, deadline=None)
@given(findings=finding_lists(), at=st.integers(0, len(TRAINED_STYLES + UNSEEN_STYLES) - 1))
def test_house_styles_come_back(findings: list[Finding], at: int) -> None:
    report = read_text(render_in_style(findings, (TRAINED_STYLES + UNSEEN_STYLES)[at]).text)
    assert Counter(map(in_class, report.classes)) == Counter(map(in_class, findings))


def one(text: str) -> ReadFinding:
    findings = read_text(text).findings
    assert len(findings) == 1, [str(finding) for finding in findings]
    return findings[0]


@pytest.mark.parametrize(
    ("text", "name", "certainty"),
    [
        ("Cannot exclude a small mass in the left temporal pole, 9 mm.", "mass", MAYBE),
        ("A small meningioma cannot be excluded.", "meningioma", MAYBE),
        ("Findings may represent a metastasis.", "metastasis", MAYBE),
        ("Probable old infarct.", "chronic infarct", MAYBE),
        ("Abscess is favored over metastasis.", None, MAYBE),
        ("Findings are consistent with an abscess.", "abscess", SURE),
        ("Findings favor glioblastoma over lymphoma.", "lymphoma", MAYBE),
        ("Lymphoma and metastasis are less likely.", "metastasis", MAYBE),
        ("Encephalitis should be considered.", "encephalitis", MAYBE),
        ("Mass? Yes.", "mass", SURE),
        ("Focal cortical dysplasia is suspected.", "cortical dysplasia", MAYBE),
        ("The lateral ventricles are possibly enlarged.", "ventricular enlargement", MAYBE),
    ],
)
def test_doubt(text: str, name: str | None, certainty: Certainty) -> None:
    findings = read_text(text).findings
    assert findings
    assert findings[-1].certainty is certainty
    assert name in (None, findings[-1].name)


@pytest.mark.parametrize(
    ("text", "absent"),
    [
        ("Neither ventricle is enlarged.", {"ventricular enlargement"}),
        ("Is there a mass? No.", {"mass"}),
        ("No hydrocephalus, and no mass.", {"hydrocephalus", "mass"}),
        ("Mass, infarct and hemorrhage are not seen.", {"mass", "infarct", "hematoma"}),
        ("The hematoma has resolved.", {"hematoma"}),
        ("Hemorrhage: none. Mass: absent.", {"hematoma", "mass"}),
        ("There are neither infarcts nor microbleeds.", {"infarct", "microhemorrhage"}),
        ("Not seen: hemorrhage, infarct, mass.", {"hematoma", "infarct", "mass"}),
        ("There is complete resolution of the previously seen subdural hematoma.", {"subdural hematoma"}),
        ("Hemorrhage: no.", {"hematoma"}),
    ],
)
def test_negation(text: str, absent: set[str]) -> None:
    report = read_text(text)
    assert report.findings == ()
    assert absent <= report.absent
    assert report.coverage == 1.0


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("No mass other than the known left cerebellar hemangioblastoma.", ["hemangioblastoma"]),
        ("No infarct but a mass.", ["mass"]),
        ("Lesion without enhancement.", ["lesion"]),
        ("No hydrocephalus, mild left frontal edema.", ["edema"]),
        ("Although no mass is seen, there is edema.", ["edema"]),
        ("No enhancement of the left frontal tumor.", ["mass"]),
        ("There is no hemorrhage within the left frontal tumor.", ["mass"]),
        ("The left lateral ventricle is not compressed.", []),
        ("Lesion shows neither enhancement nor restricted diffusion.", ["lesion"]),
        ("No enhancement to suggest tumor.", []),
        ("Status post resection of a right frontal glioma.", []),
        ("History of stroke. No mass.", []),
        ("TECHNIQUE: T1 of a 45 mm mass. INDICATION: rule out abscess. FINDINGS: Pineal cyst.", ["pineal cyst"]),
        ("## Clinical history\nKnown glioma.\n\n## Findings\nAneurysm.", ["aneurysm"]),
    ],
)
def test_what_a_negation_or_a_history_reaches(text: str, names: list[str]) -> None:
    assert [finding.name for finding in read_text(text).findings] == names


@pytest.mark.parametrize(
    ("text", "side", "regions", "size"),
    [
        ("The mass is not on the left but in the right frontal lobe.", Side.RIGHT, [Region.FRONTAL], None),
        ("L frontal mass, 2.4 x 1.9 x 2.1 cm.", Side.LEFT, [Region.FRONTAL], 24),
        ("Mass in the left frontal lobe with midline shift to the right of 5 mm.", Side.LEFT, [Region.FRONTAL], None),
        ("Right parietal mass compressing the left lateral ventricle.", Side.RIGHT, [Region.PARIETAL], None),
        ("Left temporal metastasis, now 13 mm, previously 21 mm.", Side.LEFT, [Region.TEMPORAL], 13),
        ("Left temporal metastasis, increased from 8 to 13 mm.", Side.LEFT, [Region.TEMPORAL], 13),
        ("Bilateral thalamic infarcts.", Side.BILATERAL, [Region.THALAMUS], None),
        ("RMCA infarct.", Side.RIGHT, ["MCA territory"], None),
        ("A mass is seen. It lies in the left insula and measures 3 cm.", Side.LEFT, [Region.INSULA], 30),
        ("Axial 5 mm slices show a mass in the right cerebellum.", Side.RIGHT, [Region.CEREBELLUM], None),
    ],
)
def test_places_and_sizes(text: str, side: Side, regions: list[str], size: float | None) -> None:
    finding = read_text(text).findings[0]
    assert (finding.side, list(finding.regions), finding.size_mm) == (side, regions, size)


@pytest.mark.parametrize(
    ("text", "side", "regions"),
    [
        ("Mass effect on the right lateral ventricle from the left frontal tumor.", Side.LEFT, [Region.FRONTAL]),
        ("The right lateral ventricle is compressed by a mass in the left frontal lobe.", Side.LEFT, [Region.FRONTAL]),
        ("Left temporal horn entrapment by a right parietal mass.", Side.RIGHT, [Region.PARIETAL]),
        ("Rightward shift of the midline due to a left frontal tumor.", Side.LEFT, [Region.FRONTAL]),
        ("Right frontal mass with left-sided hemiparesis.", Side.RIGHT, [Region.FRONTAL]),
        ("Mass centered in the left thalamus, crossing the midline to the right.", Side.LEFT, [Region.THALAMUS]),
        ("Edema extends into the right internal capsule from a left frontal tumor.", Side.LEFT, [Region.FRONTAL]),
        ("Extensive edema surrounds the mass in the right temporal lobe.", Side.RIGHT, [Region.TEMPORAL]),
        ("The tumor is predominantly located in the left parietal lobe.", Side.LEFT, [Region.PARIETAL]),
        ("The right frontal lobe is normal. The left frontal lobe contains a mass.", Side.LEFT, [Region.FRONTAL]),
        ("Tumor location: temporal lobe. Side: right.", Side.RIGHT, [Region.TEMPORAL]),
        ("The left insula is replaced by a growth.", Side.LEFT, [Region.INSULA]),
        ("No edema around the right parietal tumor.", Side.RIGHT, [Region.PARIETAL]),
        ("Left temporal tumor not involving the insula.", Side.LEFT, [Region.TEMPORAL]),
        ("Right temporal tumor without extension to the left frontal lobe.", Side.RIGHT, [Region.TEMPORAL]),
    ],
)
def test_the_side_of_a_mass_is_not_that_of_what_stands_beside_it(text: str, side: Side, regions: list[str]) -> None:
    masses = [(f.side, list(f.regions)) for f in read_text(text).findings if f.name == "mass"]
    assert masses == [(side, regions)]


def test_alternatives_share_their_place() -> None:
    found = read_text("Left temporal lobe abscess versus metastasis, 26 mm.").findings
    assert [(f.name, f.side, f.size_mm, f.certainty) for f in found] == [
        ("abscess", Side.LEFT, 26, MAYBE),
        ("metastasis", Side.LEFT, 26, MAYBE),
    ]


def test_two_sizes_for_two_sides() -> None:
    report = read_text("Subdural hematomas measuring 4 mm on the left and 7 mm on the right.")
    assert [(f.side, f.size_mm) for f in report.findings] == [(Side.LEFT, 4), (Side.RIGHT, 7)]


def test_an_earlier_size_and_a_change() -> None:
    finding = one("The right parietal mass has increased, currently 38 mm compared with 29 mm.")
    assert (finding.size_mm, finding.previous_mm, finding.change) == (38, 29, "larger")
    finding = one("The left frontal hematoma measures 12 x 9 mm vs 20 x 15 mm previously.")
    assert (finding.size_mm, finding.previous_mm) == (12, 20)


def test_a_name_of_a_mass_keeps_the_mass() -> None:
    finding = one("Dural-based mass over the left convexity, 18 mm, likely a meningioma.")
    assert (finding.name, finding.certainty, finding.seen_as, finding.size_mm) == ("meningioma", MAYBE, "mass", 18)
    found = finding.as_finding()
    assert found is not None
    assert (found.kind, found.certainty) == (FindingClass.MASS, SURE)


def test_a_lesion_with_edema_is_a_mass() -> None:
    assert one("Lesion of the left frontal lobe.").name == "lesion"
    assert {f.name for f in read_text("Lesion of the left frontal lobe with edema.").findings} == {"mass", "edema"}


def test_a_sentence_names_what_was_described_before() -> None:
    text = "Tumor in the left frontal lobe, 5 cm. There is edema. The overall impression is suggestive of a glioma."
    finding = read_text(text).findings[0]
    assert (finding.name, finding.certainty, finding.seen_as, finding.size_mm) == ("glioma", MAYBE, "mass", 50)


def test_signs_do_not_swallow_what_they_are_signs_of() -> None:
    assert {f.name for f in read_text("Necrosis is seen in the center of the tumor.").findings} == {"necrosis", "mass"}


TUMOR_REPORTS = (
    "A 35 mm lesion occupies the {s} {l} lobe. The edema extends to the {x} hemisphere. The {x} lateral ventricle is "
    "normal. Susceptibility foci within the lesion indicate hemorrhage. There are no additional lesions on the {x}.",
    "The lesion area is mainly in the {s} {l} lobe, and the signal is uneven. Necrosis is found in the center of the "
    "lesion. The {s} lateral ventricle is compressed and deformed, and the midline is slightly shifted to the {x}.",
    "Within the {s} cerebral hemisphere, there is a large tumor primarily located in the {l} lobe, with extension into "
    "the corpus callosum and across the midline. The tumor demonstrates deep white matter invasion. The {x} hemisphere "
    "is unremarkable. IMPRESSION: {s} {l} mass, likely high-grade glioma.",
    "The {s} {l} lobe shows an irregular mass. Mass effect with {x}ward midline shift of 7 mm. The mass does not cross "
    "the midline. These findings are suggestive of a high-grade glioma.",
)


@pytest.mark.parametrize("side", [Side.LEFT, Side.RIGHT])
@pytest.mark.parametrize("text", TUMOR_REPORTS)
def test_reports_of_one_tumor_give_one_mass_on_its_side(text: str, side: Side) -> None:
    for lobe in ("frontal", "parietal", "temporal", "occipital"):
        other = Side.LEFT if side is Side.RIGHT else Side.RIGHT
        report = read_text(text.format(s=side, x=other, l=lobe))
        masses = [finding for finding in report.classes if finding.kind is FindingClass.MASS]
        assert [(finding.side, finding.region) for finding in masses] == [(side, Region(f"{lobe} lobe"))]
        assert report.coverage == 1.0


def test_impression_repeats_and_disagrees() -> None:
    twice = read_text("FINDINGS: 14 mm left parietal mass.\nIMPRESSION: Left parietal mass.")
    assert [f.size_mm for f in twice.findings] == [14]
    other = read_text("FINDINGS: Left parietal mass.\nIMPRESSION: Right parietal mass.")
    assert other.contradictions == ("mass: left in FINDINGS, right in IMPRESSION",)
    assert read_text("No mass on the left. On the right there is a mass.").contradictions == ()
    denied = read_text("No aneurysm. There is an aneurysm.")
    assert denied.contradictions == ("aneurysm both stated and denied",)


def test_unknown_findings_keep_their_words() -> None:
    finding = one("Right frontal chordoma, 12 mm.")
    assert (finding.name, finding.words, finding.side, finding.size_mm) == (OTHER, "chordoma", Side.RIGHT, 12)
    assert finding.as_finding() is None


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("Lorem ipsum dolor sit amet.", 0.0),
        ("No mass. Lorem ipsum dolor.", 0.5),
        ("There is no fnord. No mass.", 0.5),
        ("The glymphatic xyzzy is enlarged.", 0.0),
    ],
)
def test_what_is_not_read_lowers_the_coverage(text: str, most: float) -> None:
    report = read_text(text)
    assert report.coverage <= most
    assert any(sentence.unread for sentence in report.sentences)


@pytest.mark.parametrize(
    "text",
    [
        "Im linken Frontallappen zeigt sich eine Raumforderung. Kein Hinweis auf eine Blutung.",
        "Il existe une lésion dans le lobe frontal gauche avec un oedème. Pas de saignement.",
        "Se observa una masa en el lóbulo frontal izquierdo con edema. Sin hemorragia.",
        "В левой лобной доле определяется образование.",
        "左额叶见占位性病变。",
    ],
)
def test_other_languages_are_refused(text: str) -> None:
    with pytest.raises(ScanError, match="English") as refused:
        read_text(text, "a.txt")
    assert refused.value.exit_code == 65


def test_codes_are_in_the_free_set() -> None:
    sct = pytest.importorskip("pydicom.sr._concepts_dict", reason="pydicom is an extra").concepts["SCT"]
    free = {code for meanings in sct.values() for code in meanings}
    codes = {row.code for row in BRAIN_FINDINGS if row.code}
    assert len(codes) > 10
    assert codes <= free


def test_labels_of_other_vocabularies() -> None:
    labels = {
        "Cerebral infarction": "infarct",
        "Lacunar infarct": "lacunar infarct",
        "Cerebral atrophy": "atrophy",
        "Ventriculomegaly": "ventricular enlargement",
        "Gliosis": "gliosis",
        "Glioma": "glioma",
    }
    assert {label: finding_of(label) for label in labels} == labels
    assert finding_of("Gallstones") is None


def test_every_row_is_found_by_its_own_name() -> None:
    assert len({row.name for row in BRAIN_FINDINGS}) == len(BRAIN_FINDINGS)
    for row in BRAIN_FINDINGS:
        assert finding_of(row.words.split(";")[0].replace("(", "").split("|")[0]) is not None or "|" in row.words, (
            row.name
        )


def cut_or_broken(text: str, seed: int) -> str:
    rng = random.Random(seed)
    words = text.split()
    rng.shuffle(words)
    return " ".join(words)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=300))
@example("(((")
@example("?")
@example("1 x 2 x mm cm <<>> L R")
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        report = read_text(text)
    except ScanError:
        return
    assert isinstance(report, BrainReport)
    assert 0 <= report.coverage <= 1
    for finding in report.findings:
        assert text[finding.start : finding.end] == finding.words


@pytest.mark.parametrize("seed", range(60))
def test_shuffled_words_raise_nothing(seed: int) -> None:
    read_text(cut_or_broken(" ".join(row["text"] for row in ROWS[seed : seed + 6]), seed))
