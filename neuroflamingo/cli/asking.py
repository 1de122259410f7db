"""Verbs that only tell: `encoders list`, `inspect`, `doctor`."""

from __future__ import annotations

import json


def list_all_encoders(*, as_json: bool) -> None:
    """Name, input and output of every installed encoder, from the cards alone."""
    from neuroflamingo_encoders.registry import encoder_card, list_encoders
    from neuroflamingo_preprocessing.errors import NeuroFlamingoError

    rows = []
    for name in list_encoders():
        try:
            card = encoder_card(name)
        except NeuroFlamingoError as failure:
            rows.append({"name": name, "summary": failure.what, "needs": failure.expected or ""})
            continue
        rows.append(
            {
                "name": card.name,
                "version": card.version,
                "summary": card.summary,
                "input": card.scan.describe(),
                "tokens": card.output.tokens,
                "width": card.output.width,
                "parameters": card.cost.parameters,
                "licence": card.weights.licence,
                "digest": card.digest,
            }
        )
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"{row['name']}\n  {row['summary']}")
        if "input" in row:
            count = row["tokens"] if isinstance(row["tokens"], int) else f"({row['tokens']})"
            print(f"  {row['input']} -> {count} tokens of width {row['width']}; {row['parameters']:,} weights")
        elif row["needs"]:
            print(f"  needs {row['needs']}")


def inspect_model(name: str, *, depth: int | None, as_json: bool) -> None:
    """Print the module tree of a model."""
    from neuroflamingo.inspecting import as_lines, inspect_module
    from neuroflamingo.loading import load

    model, _ = load(name, device="cpu")
    part = inspect_module(model, name)
    if as_json:
        print(json.dumps(part.as_dict(), indent=2))
        return
    print("\n".join(as_lines(part, depth)))
    print(f"\n{part.parameters:,} weights, {part.trained:,} trained, {part.parameters - part.trained:,} frozen")


def examine(*, as_json: bool) -> int:
    """Print the examination; 1 if something is missing."""
    from neuroflamingo import doctor

    checks = doctor.examine()
    print(json.dumps(doctor.as_dict(checks), indent=2) if as_json else "\n".join(doctor.as_lines(checks)))
    return 0 if doctor.healthy(checks) else 1
