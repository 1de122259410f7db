"""Commands on weights: `models list`, `fetch`, `verify` and `convert`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo.cli.errors import SOME_FAILED
from neuroflamingo.progress import Progress, say

if TYPE_CHECKING:
    from neuroflamingo_encoders.weights.cache import WeightsRow
    from neuroflamingo_encoders.weights.verify import VerifyResult


def list_models_and_weights(*, as_json: bool) -> None:
    """Print the embedded models, then all encoder weights: source, licence, and whether they are installed."""
    from neuroflamingo_encoders.weights.cache import list_weights

    models, rows = _embedded_models(), list_weights()
    if as_json:
        say(json.dumps({"models": models, "encoders": [asdict(row) for row in rows]}, indent=2))
        return
    for model in models:
        say(
            f"{model['name']} (model)\n  in the package, {_size(model['bytes'])}; {model['licence']}\n  {model['path']}"
        )
    for row in rows:
        say("\n".join(_lines(row)))


def _embedded_models() -> list[dict[str, Any]]:
    from neuroflamingo.checkpoints.local_models import MODELS, list_models

    files = {name: MODELS / name / "model.safetensors" for name in list_models()}
    return [
        {"name": name, "path": str(path), "bytes": path.stat().st_size, "present": True, "licence": "Apache-2.0"}
        for name, path in files.items()
        if path.is_file()
    ]


def _lines(row: WeightsRow) -> list[str]:
    lines = [f"{row.name} (encoder)"]
    if row.source == "embedded":
        return [*lines, "  in the package, with the embedded model"]
    if row.source == "none":
        released = "none released" if row.licence.startswith("none") else "needs none"
        return [*lines, f"  {released}"]
    at = f" at {row.revision}" if row.revision else ""
    hashed = f"SHA-256 {row.sha256}" if row.sha256 else "hash unknown"
    lines += [f"  {row.file or 'a file'} from {row.source}{at}, {hashed}", f"  {row.licence}: {row.terms}"]
    if row.path is None:
        return [*lines, "  not installed"]
    state = "installed" if row.present else "downloaded, to be converted"
    return [*lines, f"  {state}: {row.path}, {_size(row.bytes or 0)}"]


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count:,} bytes"


def fetch(name: str, *, file: str | None, revision: str | None, overwrite: bool, as_json: bool, quiet: bool) -> None:
    """Print the licence terms, download the weights, and print the result."""
    from neuroflamingo_encoders.registry import encoder_card
    from neuroflamingo_encoders.weights.cache import permits
    from neuroflamingo_encoders.weights.fetch import fetch_weights

    weights = encoder_card(name).weights
    if weights.source not in ("none", "embedded"):
        say(f"{name}: {weights.file or 'weights'} from {weights.source}", file=sys.stderr)
        say(f"licence: {weights.licence}: {permits(weights)}", file=sys.stderr)
        if weights.gated:
            say("Accept the terms on that page and sign in (`hf auth login` or HF_TOKEN) first.", file=sys.stderr)
    with Progress(name, quiet=quiet) as shown:
        fetched = fetch_weights(
            name,
            file=file,
            revision=revision,
            overwrite=overwrite,
            progress=lambda done, total: shown.count("MB", done // 10**6, (total or done) // 10**6),
        )
    if as_json:
        say(json.dumps(asdict(fetched), indent=2))
        return
    say(fetched.path)
    if fetched.pinned:
        say(f"SHA-256 {fetched.sha256}, as the card declares")
    else:
        whose = "it is what the hub declares" if fetched.declared else "nothing vouches for it"
        unknown = "hash unknown" if weights.revision or fetched.revision is None else "revision and hash unknown"
        say(f"{unknown} to the card of {name}; please pin what came ({whose}), in the `Weights` of its card:")
        at = f'revision="{fetched.revision}", ' if fetched.revision else ""
        say(f'    {at}sha256="{fetched.sha256}",')
    if not fetched.ready:
        say(f"not safetensors yet: neuroflamingo models convert {fetched.path} --encoder {name}")


def verify(what: Sequence[str], *, encoder: str | None, as_json: bool) -> int:
    """Verify weight files and the embedded models; return 1 if any is faulty."""
    from neuroflamingo_encoders.weights.verify import verify_weights

    models = {model["name"]: model["path"] for model in _embedded_models()}
    chosen = list(models.values())
    if what:
        models |= {name: path for path in chosen if (name := _encoder_in(path))}
        chosen = list(dict.fromkeys(models[item] for item in what if item in models))
    found = [_verify_model(path) for path in chosen]
    rest = [item for item in what if item not in models]
    if rest or not what:
        found += verify_weights(rest, encoder=encoder)
    if as_json:
        say(json.dumps([asdict(item) | {"sound": item.sound} for item in found], indent=2))
    else:
        for item in found:
            say("\n".join(_report(item)))
    return 0 if all(item.sound for item in found) else SOME_FAILED


def _verify_model(path: str) -> VerifyResult:
    """Verify an embedded model's file, and that its encoder weights fit the encoder of this version."""
    from neuroflamingo.encoding.encoder_choice import ENCODER_PART
    from neuroflamingo_encoders.weights.verify import verify_file

    return verify_file(Path(path), _encoder_in(path), part=ENCODER_PART)


def _encoder_in(path: str) -> str | None:
    """Name of the encoder inside an embedded model."""
    described = json.loads((Path(path).parent / "config.json").read_text(encoding="utf-8"))
    return (described.get("encoder") or {}).get("name")


def _report(item: VerifyResult) -> list[str]:
    mark = "ok " if item.sound else "BAD"
    whose = f", {item.encoder}" if item.encoder else ""
    lines = [f"{mark} {item.path} ({_size(item.bytes)}{whose})", f"    SHA-256 {item.sha256}"]
    lines += [f"    {item.tensors} tensors, {item.parameters:,} numbers"] if item.tensors else []
    return lines + [f"    wrong: {text}" for text in item.problems] + [f"    note: {text}" for text in item.notes]


def convert(
    file: str,
    output: str | None,
    *,
    encoder: str | None,
    key: str | None,
    drop: Sequence[str],
    skip_unknown: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Convert a checkpoint and print which tensors were used and which were omitted."""
    from neuroflamingo_encoders.weights.convert import convert_weights

    done = convert_weights(
        file, output, encoder=encoder, key=key, drop=tuple(drop), skip_unknown=skip_unknown, overwrite=overwrite
    )
    if as_json:
        say(json.dumps(asdict(done), indent=2))
        return
    say(done.path)
    say(
        f"{done.tensors} tensors from {done.chosen if done.chosen != '.' else 'the file itself'}, SHA-256 {done.sha256}"
    )
    others = [f"{key} ({count})" for key, count in done.found.items() if key != done.chosen]
    say(
        *([f"other parts with tensors: {', '.join(others[:8])}"] if others else []),
        sep="\n",
        end="\n" if others else "",
    )
    for title, names in (("left out", done.left_out), ("objects skipped", done.unknown)):
        if names:
            say(f"{title}: {', '.join(names[:8])}" + (f" and {len(names) - 8} more" if len(names) > 8 else ""))
    if encoder is None:
        say("not compared with any encoder; --encoder NAME checks names and shapes")
