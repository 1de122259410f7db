"""`evaluate`: score a model on unseen painted cases, always with controls that show whether it used the scans."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neuroflamingo.evaluation.constant_report import best_constant_report
from neuroflamingo.evaluation.grade_ranks import grade_ranks
from neuroflamingo.evaluation.greedy import write_greedily
from neuroflamingo.evaluation.mirror_figures import mirror_figures
from neuroflamingo.evaluation.painted_cases import EncodedCases, encode_cases, scans_to_paint
from neuroflamingo.evaluation.readout import Thresholds, decode
from neuroflamingo.evaluation.scoring import Scores, score_exchanged, score_findings, score_reports
from neuroflamingo.evaluation.text_metrics import text_overlap
from neuroflamingo.findings.vocabulary import mirror
from neuroflamingo.findings.wording import render_report
from neuroflamingo.model.tokens import IMAGE
from neuroflamingo_encoders.families.tiny_t1w.network import TinyT1wEncoder
from neuroflamingo_preprocessing.errors import UsageError

if TYPE_CHECKING:
    from neuroflamingo.model.neuroflamingo import NeuroFlamingo
    from neuroflamingo.model.processor import NeuroFlamingoProcessor

TEST_SEED = 4_000_000
BATCH = 50
KEYS = (
    "finding_f1",
    "full_finding_f1",
    "laterality_accuracy",
    "wrong_side_rate",
    "region_accuracy",
    "size_mae_mm",
    "hallucination_on_normals",
    "omission_rate",
    "parse_coverage",
)


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one set of cases.

    Attributes:
        real: scores of the reports on the real scans.
        visible: the same, but a finding that no reader could see is not counted as missed.
        blank, other_patient, mirrored, constant: controls: an empty scan; other cases' scans; the mirrored scan,
            scored against the mirrored truth (sides must swap); the best constant report.
        readout: linear readout of the frozen encoder, if it has one.
        overlap: BLEU-4 and ROUGE-L, for comparison only.
        metadata: model, seeds, anatomy, device, seconds, failures.
    """

    real: Scores
    visible: Scores
    blank: Scores
    other_patient: Scores
    mirrored: Scores
    constant: Scores
    readout: Scores | None
    overlap: dict[str, float]
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def controls(self) -> dict[str, Scores]:
        """The controls by their published names."""
        return {
            "blank": self.blank,
            "other_patient": self.other_patient,
            "mirrored": self.mirrored,
            "constant": self.constant,
        }

    def to_json(self) -> dict[str, Any]:
        """Published keys at the top level and under each control; intervals and classes of the real reports."""
        out: dict[str, Any] = dict(self.real.to_json())
        for name, scores in self.controls.items():
            out[name] = {key: scores[key] for key in KEYS}
        out["visible"] = {key: self.visible[key] for key in KEYS}
        out["readout"] = {key: self.readout[key] for key in KEYS} if self.readout else None
        return out | {"overlap": self.overlap, "about": self.metadata}

    def write_csv(self, path: str | Path) -> None:
        """Write one row per case of the real reports."""
        self.real.write_csv(path)

    @property
    def failed(self) -> list[tuple[int, str]]:
        """Seed and message of the cases that could not be prepared; their reports count as empty ones."""
        return self.metadata.get("failed_preparations", [])

    def table(self) -> str:
        """Markdown table of the scores with 95 % intervals, next to the controls, and of scans that failed."""
        columns = {"visible": self.visible, "readout": self.readout, **self.controls}
        heads = ["figure", "report", "95 %", *(name.replace("_", " ") for name in columns)]
        lines = [" | ".join(heads), " | ".join(["---"] * len(heads))]
        for key in (*KEYS, "impression_agreement", "grade_accuracy"):
            bounds = self.real.intervals[key]
            span = f"{bounds[0]:.3f} to {bounds[1]:.3f}" if bounds else ""
            cells = [shown(scores[key]) if scores else "" for scores in columns.values()]
            lines.append(" | ".join([key, shown(self.real[key]), span, *cells]))
        for key, value in self.overlap.items():
            lines.append(" | ".join([f"{key} (words only)", f"{value:.3f}", "", *[""] * len(columns)]))
        for title, key in (("mirror check", "mirror_check"), ("grade against painted volume", "grade_ranks")):
            for name, value in self.metadata.get(key, {}).items():
                words = f"{title}: {name.replace('_', ' ')}"
                lines.append(" | ".join([words, shown(value), "", *[""] * len(columns)]))
        if self.failed:
            count = f"{len(self.failed)} of {self.metadata['cases']}"
            lines.append(" | ".join(["scans not prepared, scored as empty reports", count, "", *[""] * len(columns)]))
        return "\n".join(f"| {line} |" for line in lines)


def shown(value: float | None) -> str:
    """A figure in a table; nothing if there is none."""
    return "" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def evaluate(
    model: NeuroFlamingo,
    processor: NeuroFlamingoProcessor,
    cases: int = 200,
    seed: int = TEST_SEED,
    *,
    anatomy: str = "icbm2009a",
    outlines: str | None = None,
    processes: int | None = None,
    keep: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    metadata: dict[str, Any] | None = None,
) -> Evaluation:
    """Paint unseen cases with seeds from `seed` on, preprocess them like real scans and score the greedy reports.

    Args:
        anatomy, outlines: see `scans_to_paint`.
        keep: folder in which prepared scans are kept, see `KeptScans`: an evaluation that was ended goes on there.
        progress: called with (part, done, all).

    Raises:
        UsageError: the model has no encoder, or fewer than two cases (another patient's scan is needed).
        ModelError, ScanError: see `encode_cases`.
    """
    if model.encoder is None:
        raise UsageError("the model has no encoder", expected="a model that takes scans", hint="evaluate another model")
    if cases < 2:
        raise UsageError("an evaluation needs at least two cases", expected="2 or more", seen=str(cases))
    began = time.perf_counter()
    said = progress or (lambda part, done, total: None)
    seeds = range(seed, seed + cases)
    encoded = encode_cases(
        scans_to_paint(seeds, anatomy, outlines),
        model.encoder,  # pyright: ignore[reportArgumentType]
        processes=processes,
        keep=keep,
        progress=lambda d, n: said("scans", d, n),
    )
    result = score_encoded(model, processor, encoded, progress=said)
    result.metadata.update(run_facts(model, seeds, anatomy, outlines, encoded.failed, began) | (metadata or {}))
    return result


def run_facts(
    model: NeuroFlamingo, seeds: range, anatomy: str, outlines: str | None, failed: Mapping[int, str], began: float
) -> dict[str, Any]:
    """What an evaluation states of its run: cases, heads, device, failures (number and message), and seconds."""
    return {
        "cases": len(seeds),
        "first_seed": seeds.start,
        "anatomy": Path(anatomy).name,
        "outlines": outlines and Path(outlines).name,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "failed_preparations": [(seeds[number], why) for number, why in failed.items()],
        "seconds": round(time.perf_counter() - began, 1),
    }


def score_encoded(
    model: NeuroFlamingo,
    processor: NeuroFlamingoProcessor,
    encoded: EncodedCases,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Generate and score the reports of encoded cases and all controls."""
    truth = encoded.truth
    count = len(truth)

    def write(part: str, tokens: Tensor) -> list[str]:
        return write_reports(model, processor, tokens, lambda d, n: progress(part, d, n) if progress else None)

    texts = encoded.of_all(write("reports", encoded.plain), "")
    flipped = encoded.of_all(write("mirrored scans", encoded.mirrored), "")
    blank_text = write("blank scan", encoded.blank[None])[0]
    constant = best_constant_report(truth)
    references = [render_report(list(findings), index).text for index, findings in enumerate(truth)]
    return Evaluation(
        real=score_reports(truth, texts),
        visible=score_reports(truth, texts, visible=encoded.visible),
        blank=score_reports(truth, [blank_text] * count),
        other_patient=score_exchanged(truth, texts),
        mirrored=score_reports([mirror(f) for f in truth], flipped),
        constant=score_reports(truth, [constant.text] * count),
        readout=_readout(model, encoded),
        overlap=text_overlap(references, texts),
        metadata={
            "blank_report": blank_text,
            "constant_report": constant.text,
            "mirror_check": mirror_figures(truth, texts, flipped),
            "grade_ranks": grade_ranks(encoded.volumes, texts),
        },
    )


def write_reports(
    model: NeuroFlamingo,
    processor: NeuroFlamingoProcessor,
    tokens: Tensor,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Generate greedy reports from encoder tokens `[case, 1, token, width]`."""
    return write_greedily(model, processor.tokenizer, IMAGE, tokens, batch=BATCH, progress=progress)


@torch.no_grad()
def _readout(model: NeuroFlamingo, encoded: EncodedCases) -> Scores | None:
    """Findings of the encoder's direct readout with the model's stored thresholds, for encoders that have one."""
    stored = (getattr(model.config, "training", None) or {}).get("thresholds")
    if not isinstance(model.encoder, TinyT1wEncoder) or stored is None:
        return None
    empty = torch.zeros(len(encoded.plain))
    readout = model.encoder.cpu().read_tokens(encoded.plain[:, 0], empty, empty)
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
    thresholds = Thresholds(**values)
    found = decode(readout, model.encoder.centres.cpu(), thresholds)
    return score_findings(encoded.truth, encoded.of_all(found, []))
