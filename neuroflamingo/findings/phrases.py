"""Sentences of reports, as data.

Few on purpose: a language model of a few layers must learn to write them all, and each must parse back to exactly its
finding. Mark-up: `{field}` is filled in and carries a finding; so do `[words]` (presence, negation, class); `<...>` is
omitted if a field inside it is not stated. No article precedes a number directly, so that "a" never has to become "an".
"""

from __future__ import annotations

from neuroflamingo.findings.changes import ChangeKind
from neuroflamingo.findings.vocabulary import FOCAL, FindingClass, Signal

TECHNIQUES = (
    "T1-weighted MRI of the brain.",
    "Volumetric T1-weighted MRI of the brain.",
    "Brain MRI, T1-weighted sequence.",
    "MRI of the head with a T1-weighted sequence.",
    "T1-weighted brain MRI without contrast.",
    "Single T1-weighted volume of the head.",
)

GRADES = {1: ("mild", "mildly"), 2: ("moderate", "moderately"), 3: ("severe", "severely")}
"""Grade to its adjective and adverb."""

SIGNALS = {Signal.LOW: ("low", ("hypointense", "dark")), Signal.HIGH: ("high", ("hyperintense", "bright"))}
"""Signal to the word before "signal" and its adjectives."""

NOUNS = {
    FindingClass.INFARCT: ("chronic infarct", "remote infarct", "prior infarct"),
    FindingClass.MASS: ("mass", "mass lesion", "focal mass"),
    FindingClass.HEMATOMA: ("hematoma", "subacute hematoma", "subacute hemorrhage"),
    FindingClass.WHITE_MATTER_LESIONS: ("white matter lesions", "white matter changes", "lesions of the white matter"),
    FindingClass.VENTRICULAR_ENLARGEMENT: (
        "ventricular enlargement",
        "enlargement of the lateral ventricles",
        "dilatation of the lateral ventricles",
    ),
    FindingClass.ATROPHY: ("atrophy", "volume loss", "focal atrophy"),
}

FOCAL_SENTENCES = (
    "There is a <{maybe} ><{adjective} >{noun}< in {at}><, measuring {size} mm>.",
    "A <{maybe} ><{adjective} >{noun}< of {size} mm> is seen< in {at}>.",
    "<{place} ><{maybe} >{noun}< of {size} mm>< with {level} signal>.",
    "<In {at} >there is a <{maybe} ><{adjective} >{noun}<, {size} mm in diameter>.",
    "A <{maybe} >{noun}< in {at}> is present<, {adjective} on T1><, size {size} mm>.",
    "There is a <{maybe} >{noun}< with {level} signal>< in {at}><, about {size} mm long>.",
)
FURTHER_SENTENCES = (
    "Another <{maybe} ><{adjective} >{noun}< of {size} mm> is seen< in {at}>.",
    "A further <{maybe} ><{adjective} >{noun}< in {at}> is seen<, measuring {size} mm>.",
)
"""Openings only for a finding that follows another of its class."""

DIFFUSE_SENTENCES = {
    FindingClass.WHITE_MATTER_LESIONS: (
        "There are <{maybe} ><{grade} >[white matter lesions] in both hemispheres.",
        "<{maybe} ><{grade} >[bilateral white matter lesions] are present.",
        "The white matter [shows] <{maybe} ><{grade} >[lesions] on both sides.",
        "<{maybe} ><{grade} >[white matter changes] are seen in both hemispheres.",
        "The cerebral white matter [contains] <{maybe} ><{grade} >[lesions].",
        "In the white matter there are <{maybe} ><{grade} >[lesions].",
    ),
    FindingClass.VENTRICULAR_ENLARGEMENT: (
        "The lateral ventricles are <{maybely} ><{gradely} >[enlarged].",
        "There is <{maybe} ><{grade} >[ventricular enlargement].",
        "<{maybe} ><{grade} >[enlargement] of the lateral ventricles is seen.",
        "The ventricles are <{maybely} ><{gradely} >[dilated].",
        "<{maybe} ><{grade} >[dilatation] of both lateral ventricles is present.",
        "Ventricular size is <{maybely} ><{gradely} >[increased].",
    ),
    FindingClass.ATROPHY: (
        "There is <{maybe} ><{grade} >[atrophy]< of {at}>.",
        "<{place} ><{maybe} ><{grade} >[atrophy] is present.",
        "<{maybe} ><{grade} >[volume loss] is seen< in {at}>.",
        "<{maybe} ><{grade} >[atrophy] affects {at}.",
        "<In {at} >there is <{maybe} ><{grade} >[volume loss].",
        "Sulci are widened with <{maybe} ><{grade} >[atrophy]< of {at}>.",
    ),
}

BRIEF_SENTENCES = dict.fromkeys(
    FOCAL,
    (
        "<{maybe} >{noun}<, {place}><, {size} mm><, {adjective}>.",
        "<{place} ><{maybe} >{noun}<, {size} mm><, {level} signal>.",
    ),
) | {
    FindingClass.WHITE_MATTER_LESIONS: ("<{maybe} ><{grade} >[white matter lesions].",),
    FindingClass.VENTRICULAR_ENLARGEMENT: ("<{maybe} ><{grade} >[ventricular enlargement].",),
    FindingClass.ATROPHY: ("<{maybe} ><{grade} >[atrophy]<, {place}>.", "<{place} ><{maybe} ><{grade} >[atrophy]."),
}
"""Statements without verbs and articles, as some houses write them."""

NEGATIVE_NOUNS = {
    FindingClass.INFARCT: ("infarct", "chronic infarct"),
    FindingClass.MASS: ("mass", "mass lesion"),
    FindingClass.HEMATOMA: ("hemorrhage", "hematoma"),
}
NEGATIVE_SENTENCES = (
    "[No {list}].",
    "There is [no {list}].",
    "[No] evidence of {list}.",
    "[No] sign of {list}.",
    "[Negative] for {list}.",
    "[No {list}] is seen.",
)
"""For one or several focal classes; the list is joined with commas and "or"."""

NORMAL_SENTENCES: dict[tuple[FindingClass, ...], tuple[str, ...]] = {
    (FindingClass.WHITE_MATTER_LESIONS,): (
        "[No white matter lesions].",
        "There are [no white matter lesions].",
        "The white matter is [normal].",
        "White matter signal is [normal].",
        "The cerebral white matter is [unremarkable].",
        "[Normal] white matter.",
    ),
    (FindingClass.VENTRICULAR_ENLARGEMENT,): (
        "[No ventricular enlargement].",
        "There is [no ventricular enlargement].",
        "The ventricles are [normal] in size.",
        "The lateral ventricles are [not enlarged].",
        "Ventricular size is [normal].",
        "[Normal] size of the ventricles.",
    ),
    (FindingClass.ATROPHY,): (
        "[No atrophy].",
        "There is [no lobar atrophy].",
        "Brain volume is [normal].",
        "Brain volume is [preserved].",
        "[No] focal [volume loss].",
        "[Normal] brain volume.",
    ),
    (FindingClass.VENTRICULAR_ENLARGEMENT, FindingClass.ATROPHY): (
        "[No ventricular enlargement or atrophy].",
        "There is [no ventricular enlargement or atrophy].",
        "The ventricles and brain volume are [normal].",
        "Ventricles, sulci and brain volume are [normal].",
        "[Normal] ventricles and brain volume.",
        "[Normal] size of the ventricles and sulci.",
    ),
}

IMPRESSIONS = {
    "place": (
        "<{place} ><{maybe} ><{grade} >{noun}.",
        "<{maybe} ><{grade} >{noun}< in {at}>.",
        "<{maybe} ><{grade} >{noun}< of {at}>.",
    ),
    "diffuse": ("<{maybe} ><{grade} >{noun}.", "<{maybe} >{noun}<, {grade}>."),
}
"""Restatements, each with every noun of the class; the numbers before them are added when the list is made."""

NORMAL_IMPRESSIONS = (
    "[Normal] MRI of the brain.",
    "[Normal] brain MRI.",
    "[No abnormality].",
    "[Unremarkable] brain MRI.",
    "[No] intracranial [abnormality] is seen.",
    "[Normal] T1 appearance of the brain.",
)

NOTHING_ELSE = "[No other findings]."
NOTHING_AT_ALL = "[No abnormal findings]."
"""In place of all negatives: beside findings, and without any."""

FOCAL_CHANGES = {
    ChangeKind.NEW: (
        "The {noun}< in {at}> is [new].",
        "The {noun}< in {at}> was [not seen before].",
        "<{place} >{noun}: [new].",
    ),
    ChangeKind.GONE: (
        "The {noun}< in {at}> is [no longer seen]<, previously {was} mm>.",
        "The {noun}< in {at}> has [resolved]<, before {was} mm>.",
        "<{place} >{noun}: [gone]<, previously {was} mm>.",
    ),
    ChangeKind.LARGER: (
        "The {noun}< in {at}> is [larger]<: {size} mm><, previously {was} mm>.",
        "The {noun}< in {at}> has [grown]<, now {size} mm><, before {was} mm>.",
        "<{place} >{noun}: [larger]<, {size} mm><, previously {was} mm>.",
    ),
    ChangeKind.SMALLER: (
        "The {noun}< in {at}> is [smaller]<: {size} mm><, previously {was} mm>.",
        "The {noun}< in {at}> has [shrunk]<, now {size} mm><, before {was} mm>.",
        "<{place} >{noun}: [smaller]<, {size} mm><, previously {was} mm>.",
    ),
    ChangeKind.UNCHANGED: (
        "The {noun}< in {at}> is [unchanged].",
        "The {noun}< in {at}> is [stable].",
        "<{place} >{noun}: [unchanged].",
    ),
}
GRADED_CHANGES = {
    ChangeKind.NEW: (
        "{noun}< in {at}> {is} [new].",
        "{noun}< in {at}> {has} [appeared].",
        "<{place} >{noun}: [new].",
    ),
    ChangeKind.GONE: (
        "{noun}< in {at}> {is} [no longer seen]<, previously {formerly}>.",
        "{noun}< in {at}> {has} [resolved]<, before {formerly}>.",
        "<{place} >{noun}: [gone]<, previously {formerly}>.",
    ),
    ChangeKind.LARGER: (
        "{noun}< in {at}> {has} [increased]< from {formerly}>< to {grade}>.",
        "{noun}< in {at}> {is} [worse]<, now {grade}><, before {formerly}>.",
        "<{place} >{noun}: [increased]<, {grade}><, previously {formerly}>.",
    ),
    ChangeKind.SMALLER: (
        "{noun}< in {at}> {has} [decreased]< from {formerly}>< to {grade}>.",
        "{noun}< in {at}> {is} [better]<, now {grade}><, before {formerly}>.",
        "<{place} >{noun}: [decreased]<, {grade}><, previously {formerly}>.",
    ),
    ChangeKind.UNCHANGED: (
        "{noun}< in {at}> {is} [unchanged].",
        "{noun}< in {at}> {is} [stable].",
        "<{place} >{noun}: [unchanged].",
    ),
}
"""Sentences of COMPARISON for each kind of change, the last one without a verb."""

NO_CHANGE = ("[No change] since the previous scan.", "[Nothing has changed] since the previous scan.", "[Unchanged].")
DIFFERENT_HEADS = (
    "The two scans show [different heads]; no comparison is made.",
    "The scans are of [different heads]; no comparison is made.",
    "[Different heads]: no comparison is made.",
)
