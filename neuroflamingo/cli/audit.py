"""The command `audit`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo.cli.errors import SOME_FAILED
from neuroflamingo.progress import Progress, say
from neuroflamingo_preprocessing.errors import UsageError
from neuroflamingo_preprocessing.files import check_writable, write_text_atomic
from neuroflamingo_preprocessing.software import installed_version

if TYPE_CHECKING:
    from collections.abc import Callable

    from neuroflamingo.cli.requests import AuditRequest
    from neuroflamingo.evaluation.reliance_audit import RelianceAudit

SHOWN = 5
"""Refusals of each kind that are printed."""


def audit_model(request: AuditRequest) -> int:
    """Audit a model and print verdicts and figures, or JSON; return 1 if some scans got no report.

    Raises:
        UsageError: not one model, but two or none.
    """
    if (request.command is None) == (request.model is None):
        raise UsageError("an audit takes one model", expected="--command or --model", hint="--command 'PROGRAM {scan}'")
    if request.texts is not None:
        check_writable(request.texts, overwrite=request.overwrite)
    from neuroflamingo.evaluation.audit_cases import audit_cases
    from neuroflamingo.evaluation.reliance_audit import audit_reliance
    from neuroflamingo.evaluation.report_texts import read_references

    references = read_references(request.references) if request.references else None
    cases = audit_cases(request.scans, references)[: request.cases]
    with Progress(quiet=request.quiet) as progress:
        progress("loading the model" if request.model else "auditing")
        write, with_target = _model(request)
        found = audit_reliance(write, cases, with_target=with_target, progress=progress.count)
    found.about.update(_about(request))
    if request.texts is not None:
        rows = [{"id": i, "shown": name, "text": t} for name, texts in found.texts.items() for i, t in texts.items()]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text_atomic(request.texts, lines, overwrite=request.overwrite)
    say(json.dumps(found.to_json(), indent=2) if request.json else audit_words(found))
    return SOME_FAILED if found.refused["own"] else 0


def _model(request: AuditRequest) -> tuple[Callable[[Path], str], Callable[[Path, str], str] | None]:
    """The model as a function of a scan; if its command takes the true report too, also as one of both."""
    if request.model is not None:
        from neuroflamingo.inference.loaded_model import open_model
        from neuroflamingo.inference.pipeline import write_report

        opened = open_model(request.model, device=request.device)
        return (lambda scan: write_report(scan, model=opened, pictures=False).text), None
    from neuroflamingo.evaluation.scan_command import ScanCommand

    command = ScanCommand.of(str(request.command), request.timeout)
    return command, command if command.takes_target else None


def _about(request: AuditRequest) -> dict[str, Any]:
    return {
        "scans": Path(request.scans).name,
        "model": request.model or "a command",
        "software": f"NeuroFlamingo {installed_version('neuroflamingo')}",
    }


def audit_words(audit: RelianceAudit) -> str:
    """Verdicts, then a table of the controls, then refusals."""
    out = [f"{name}: {why}" for name, why in audit.verdicts.items()]
    plain = audit.to_json()
    truth = "true reports" if audit.known else "the model's own reports on the scans"
    out += ["", f"{len(audit.held)} of {len(audit.cases)} scans, held against {truth}:", ""]
    heads = ["shown", "finding F1", "full-finding F1", "lost", "95 %", "wrong side", "same text"]
    rows = [heads, ["---"] * len(heads)]
    for name in (name for name in audit.scores if name in plain):
        row = plain[name]
        span = row.get("loss_interval")
        rows.append(
            [
                {"other": "another person's scan", "blank": "an empty scan"}.get(name, name),
                *(_figure(row.get(key)) for key in ("finding_f1", "full_finding_f1", "loss")),
                f"{span[0]:.3f} to {span[1]:.3f}" if span else "",
                _figure(row.get("wrong_side_rate")),
                _figure(row.get("same_text")),
            ]
        )
    out += ["| " + " | ".join(row) + " |" for row in rows]
    for name, why in plain["refused"].items():
        out += ["", f"no report on {len(why)} scans ({name}):"]
        out += [f"  {case}: {reason}" for case, reason in list(why.items())[:SHOWN]]
    return "\n".join(out)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
