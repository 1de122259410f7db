"""Sentences of reports, as data.

Few on purpose: a language model of a few layers must learn to write them all, and each must parse back to exactly its
finding. Mark-up: `{field}` is filled in and carries a finding; so do `[words]` (presence, negation, class); `<...>` is
omitted if a field inside it is not stated. No article precedes a number directly, so that "a" never has to become "an".
"""

from __future__ import annotations

from neuroflamingo.findings.vocabulary import FindingClass, Signal

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
