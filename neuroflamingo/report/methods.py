"""Methods paragraph of a report with citations, generated from the provenance record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from neuroflamingo.report.records import Citation, Methods

if TYPE_CHECKING:
    from neuroflamingo.provenance import Provenance

_ALWAYS = (
    Citation(
        key="Flamingo",
        text="Alayrac J-B, et al. Flamingo: a visual language model for few-shot learning. NeurIPS 2022.",
        url="https://arxiv.org/abs/2204.14198",
    ),
    Citation(
        key="OpenFlamingo",
        text="Awadalla A, et al. OpenFlamingo: an open-source framework for training large autoregressive "
        "vision-language models. 2023.",
        url="https://arxiv.org/abs/2308.01390",
    ),
    Citation(
        key="Perceiver",
        text="Jaegle A, et al. Perceiver: general perception with iterative attention. ICML 2021.",
        url="https://arxiv.org/abs/2103.03206",
    ),
    Citation(
        key="Vector norms",
        text="Kobayashi G, et al. Attention is not only a weight: analyzing transformers with vector norms. "
        "EMNLP 2020.",
        url="https://aclanthology.org/2020.emnlp-main.574",
    ),
    Citation(
        key="Rollout",
        text="Abnar S, Zuidema W. Quantifying attention flow in transformers. ACL 2020.",
        url="https://aclanthology.org/2020.acl-main.385",
    ),
    Citation(
        key="Transformers",
        text="Wolf T, et al. Transformers: state-of-the-art natural language processing. EMNLP 2020 (demos).",
        url="https://aclanthology.org/2020.emnlp-demos.6",
    ),
    Citation(
        key="PyTorch",
        text="Ansel J, et al. PyTorch 2: faster machine learning through dynamic Python bytecode transformation and "
        "graph compilation. ASPLOS 2024.",
        url="https://doi.org/10.1145/3620665.3640366",
    ),
    Citation(
        key="NiBabel",
        text="Brett M, et al. nipy/nibabel. Zenodo.",
        url="https://doi.org/10.5281/zenodo.591597",
    ),
)
_TEMPLATE = Citation(
    key="ICBM152",
    text="Fonov V, et al. Unbiased average age-appropriate atlases for pediatric studies. NeuroImage 54, 2011.",
    url="https://doi.org/10.1016/j.neuroimage.2010.07.033",
)
_NILEARN = Citation(
    key="Nilearn",
    text="Abraham A, et al. Machine learning for neuroimaging with scikit-learn. Front Neuroinform 8, 2014.",
    url="https://doi.org/10.3389/fninf.2014.00014",
)
_DCM2NIIX = Citation(
    key="dcm2niix",
    text="Li X, et al. The first step for neuroimaging data analysis: DICOM to NIfTI conversion. J Neurosci Methods "
    "264, 2016.",
    url="https://doi.org/10.1016/j.jneumeth.2016.03.001",
)
_SIMPLEITK = Citation(
    key="SimpleITK",
    text="Lowekamp BC, et al. The design of SimpleITK. Front Neuroinform 7, 2013.",
    url="https://doi.org/10.3389/fninf.2013.00045",
)


def methods_of(provenance: Provenance, encoder_citations: Sequence[Citation] = ()) -> Methods:
    """Describe the methods in words; every sentence follows from a field of the provenance record."""
    registered = any("regist" in step.name.lower() or "align" in step.name.lower() for step in provenance.geometry)
    citations = list(_ALWAYS)
    if any(record.header.get("format", "").startswith("DICOM") for record in provenance.inputs):
        citations.append(_DCM2NIIX)
    if registered:
        citations += [_TEMPLATE, _NILEARN, _SIMPLEITK]
    citations += [citation for citation in encoder_citations if citation not in citations]
    sentences = [_scans(provenance), _preparation(provenance, registered), _model(provenance), _generation(provenance)]
    sentences.append(
        "Findings were parsed from the text with a closed grammar. For each sentence that states a finding, the gated "
        "attention of the positions that wrote it (heads weighted by the length of what they pass on, layers by the "
        "size of their gate) was carried back through the perceiver resampler by rollout to the encoder's tokens, "
        "whose places are known. Attention shows where information was taken from and is no proof of the reason for a "
        "word."
    )
    sentences.append("The text was not reviewed by a person. It is for research only and not for diagnosis.")
    return Methods(text=" ".join(sentence for sentence in sentences if sentence), citations=tuple(citations))


def _scans(provenance: Provenance) -> str:
    scans = [record for record in provenance.inputs if record.role == "scan"]
    shapes = "; ".join(
        f"{record.header['shape']} voxels of {' x '.join(f'{size:.2g}' for size in record.spacing_mm)} mm, "
        f"stored {record.header.get('orientation', 'as RAS')}"
        for record in scans
        if "shape" in record.header
    )
    number = "One scan was" if len(scans) == 1 else f"{len(scans)} scans were"
    tools = {record.header["converted by"] for record in scans if "converted by" in record.header}
    converted = f", converted from DICOM by {', '.join(sorted(tools))}" if tools else ""
    return f"{number} read with NiBabel{converted}" + (f" ({shapes})." if shapes else ".")


def _preparation(provenance: Provenance, registered: bool) -> str:
    steps = [step.name.replace("_", " ") for step in provenance.geometry]
    if not steps:
        return "The scan's geometry was not changed."
    text = f"Its geometry was changed in {len(steps)} logged step{'s' if len(steps) > 1 else ''} ({', '.join(steps)})"
    return text + (", the alignment to the ICBM152 template among them." if registered else ".")


def _model(provenance: Provenance) -> str:
    model = provenance.model
    parts = f"NeuroFlamingo {provenance.software.version} with the model {model.name}"
    inside = [f"encoder {model.encoder}"] if model.encoder else []
    inside += [f"language model {model.language_model}"] if model.language_model else []
    inside += [f"{model.parameters / 1e6:.1f} million parameters"] if model.parameters else []
    return (
        f"{parts}{' (' + ', '.join(inside) + ')' if inside else ''} wrote the text: an encoder turned each scan into "
        "tokens, a perceiver resampler condensed them, and gated cross-attention carried them into a causal language "
        "model, as in OpenFlamingo."
    )


def _generation(provenance: Provenance) -> str:
    record = provenance.generation
    how = "greedily" if record.strategy == "greedy" else f"by sampling at temperature {record.temperature:g}"
    shots = f" after {record.examples} example report{'s' if record.examples > 1 else ''}" if record.examples else ""
    return (
        f"Text was generated {how}{shots} with seed {record.seed} in {provenance.device.dtype} on "
        f"{provenance.device.name}, {record.new_tokens} tokens."
    )
