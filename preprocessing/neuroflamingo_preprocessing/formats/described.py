"""What a file's name, or a text in its header, says of the image, in words of a closed list; the text is not kept."""

from __future__ import annotations

import re
from pathlib import Path

from neuroflamingo_preprocessing.bids.entities import entities_of, parse_name

AGENT, MASK = "contrast agent", "mask or segmentation"
_T1 = "t1 t1w t1n t1wi mprage bravo spgr unit1 uni"
_STRONG = {
    AGENT: "t1c t1ce t1gd t1wce t1post t1wc ce gd gad gado gadolinium postgd postgad postcontrast postcon",
    MASK: "mask masks seg segs dseg probseg aseg aparc labelmap wmparc parcellation",
    "T1map": "t1map r1map t1rho",
    "MP2RAGE inversion image": "inv1 inv2",
}
_ALONE = {
    "T2w": "t2 t2w t2wi",
    "FLAIR": "flair t2f t2flair tirm darkfluid",
    "PDw": "pdw pdwi",
    "T2starw": "t2star t2starw t2s swi swan susceptibility qsm",
    "dwi": "dwi dti diffusion adc trace tracew fa",
    "T2map": "t2map t2starmap r2map r2starmap",
    "bold": "bold fmri epi sbref boldref",
    "CT": "ct ncct cta",
    "angiography": "tof mra angio",
    "perfusion": "asl cbf perf perfusion dsc dce",
    "PET": "pet suv fdg",
    "MP2RAGE inversion image": "mp2rage",
}
T1, STRONG, ALONE = (
    {word: kind for kind, words in table.items() for word in words.split()} for table in ({"T1w": _T1}, _STRONG, _ALONE)
)
"""Words for a T1-weighted image; words that count even beside one of these; words that count where there is none."""
IN_TEXTS = {
    word for word in (*STRONG, *ALONE, *T1) if len(word) > 3 or word[:2] == "t1" or word in ("gad", "t2w", "tof")
}
"""Words that count in free texts of headers, where other short ones mean anything."""
WITH_AGENT = re.compile(r"\bpost (contrast|gd|gad|gado|km)\b|\bt1w? post\b|\bwith (contrast|gd|gado)\b")
ENDINGS = re.compile(r"(\.(nii|gz|mgh|mgz|zarr|nrrd|nhdr|mha|mhd|hdr|img))+$")


def described_by_name(name: str) -> tuple[str, ...]:
    """Kinds of image that a file's name says it is; empty for T1-weighted ones, and for names that say nothing.

    A BIDS name is judged by its suffix and by `ce`; any other by its words, as in `BraTS-0001-t1ce`.

    Args:
        name: of the file, without folders.
    """
    bids = parse_name(name)
    words = [bids.suffix.lower()] if bids and "sub" in bids.entities else _words(ENDINGS.sub("", name.lower()))
    agent = entities_of(Path(name)).get("ce", "none").lower() not in ("none", "no", "pre", "without")
    return _kinds([*words, *(["gad"] if agent else [])])


def described_by_text(text: str) -> tuple[str, ...]:
    """The same of a free text of a header, such as `descrip` or a series' description."""
    words = _words(text.lower())
    agent = re.search(r"\+ ?(c|gd|km)\b", text.lower())
    return _kinds([word for word in words if word in IN_TEXTS] + (["gad"] if agent else []), " ".join(words))


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", text) if word]


def _kinds(words: list[str], text: str = "") -> tuple[str, ...]:
    strong = [STRONG[word] for word in words if word in STRONG]
    strong += [AGENT] if WITH_AGENT.search(text or " ".join(words)) else []
    alone = [] if strong or any(word in T1 for word in words) else [ALONE[word] for word in words if word in ALONE]
    return tuple(dict.fromkeys((*strong, *alone)))
