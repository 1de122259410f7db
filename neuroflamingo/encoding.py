"""`encode`: scans to a file of patch tokens, with everything that says how they came to be."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from neuroflamingo.encoder_input import Preparation, prepare_for_encoder
from neuroflamingo_preprocessing.dicom_files import shown_name
from neuroflamingo_preprocessing.errors import ModelError, NeuroFlamingoError, NotFoundError, ScanError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from neuroflamingo_encoders import BrainEncoder, EncoderCard
    from neuroflamingo_encoders.token_files import ScanTokens

ENCODER_PART = "encoder."


@dataclass(frozen=True)
class Encoded:
    """What `encode` wrote.

    Attributes:
        path: the token file.
        scans: how many scans are in it.
        failures: those that are not, with their errors, in order.
    """

    path: Path
    scans: int
    failures: tuple[tuple[str, NeuroFlamingoError], ...]


@dataclass(frozen=True)
class EncoderChoice:
    """Which encoder, with which weights.

    Attributes:
        name: as `list_encoders` gives it.
        options: of the encoder's card, such as `{"slices": 12}` for a tower that looks at slices.
        weights: a safetensors file; None: the embedded model's, or the one in the encoder's folder.
        init: `random` for an untrained encoder, on purpose.
        seed: of the random initialisation.
        table: a table that is no weight but that the encoder needs: parcels' coordinates, functional gradients.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: str | Path | None = None
    init: Literal["random"] | None = None
    seed: int = 0
    table: str | Path | None = None

    @property
    def card(self) -> EncoderCard:
        """Of the encoder, with the options.

        Raises:
            ModelError, ConfigError: no such encoder, or options that it does not take.
        """
        from neuroflamingo_encoders.registry import encoder_card

        return encoder_card(self.name, **self.options)

    def load(self) -> tuple[BrainEncoder, dict[str, Any]]:
        """The encoder, frozen, with its table, and where its weights came from.

        Raises:
            NeuroFlamingoError: see `load_encoder`; a table that is missing, or not one.
        """
        module, origin = load_encoder(self.name, self.weights, options=self.options, init=self.init, seed=self.seed)
        if self.table is not None or _wants_table(module):
            origin["table"] = _set_table(module, self.table)
        return module.freeze(), origin


@dataclass(frozen=True)
class _Road:
    """All that each scan's way to its tokens has in common."""

    encoder: BrainEncoder
    device: str
    how: Preparation
    failures: list[tuple[str, NeuroFlamingoError]]
    progress: Callable[[str, int, int], None] | None


def encode(
    scans: Sequence[str | Path],
    output: str | Path,
    encoder: str | EncoderChoice,
    how: Preparation | None = None,
    *,
    device: str = "auto",
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Encoded:
    """Encode scans and write their tokens into one file. For a store of many scans: `encode_into_store`.

    Args:
        scans: NIfTI or MGH files, DICOM folders or zip archives: a volume for encoders of one 3D volume, a run in MNI
            space for those of runs and, with an atlas, for those of parcels; CIFTI parcel series (`.ptseries.nii`) for
            those of parcels; arrays (`.npy`, `.npz`, `.tsv`, `.csv`) for all. A run gives a scan for each window.
        output: ends in `.zarr`, `.npz` or `.safetensors`.
        encoder: its name, or name, options and weights.
        how: see `Preparation`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        overwrite: replace an existing output.
        progress: called with the scan's name, its number from 1, and how many there are.

    Raises:
        NeuroFlamingoError: unknown encoder, no weights (exit 69), weights that do not fit (65), an output that cannot
            be written (73); for a single scan, or if all fail, that scan's own error.
    """
    from neuroflamingo.loading import pick_device
    from neuroflamingo_encoders.token_files import check_token_target, describe_tokens, write_tokens

    target = check_token_target(output, overwrite=overwrite)
    for scan in scans:
        if not Path(scan).exists():
            raise NotFoundError(f"there is no file {scan}", expected="a scan or a ready array", hint="check the path")
    how = how or Preparation()
    choice = EncoderChoice(encoder) if isinstance(encoder, str) else encoder
    how.check_tables([None] * len(scans), choice.card.scan)
    place = pick_device(device)
    module, origin = choice.load()
    road = _Road(module.to(place), place, how, [], progress)
    about = describe_tokens(module.card, origin, software=_software(), device=place, dtype="float32")
    tokens = _all_tokens(scans, road)
    try:
        first = next(tokens)
    except StopIteration:
        raise road.failures[0][1] from None
    count = write_tokens(target, _chained(first, tokens), about, overwrite=overwrite)
    return Encoded(target, count, tuple(road.failures))


def load_encoder(
    name: str,
    weights: str | Path | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    init: Literal["random"] | None = None,
    seed: int = 0,
) -> tuple[BrainEncoder, dict[str, Any]]:
    """An encoder with its weights, frozen, and where these came from.

    Raises:
        ModelError: no weights here and `init` not given (exit 69), or they do not fit (exit 65).
        UsageError: both weights and `init`.
    """
    import torch

    from neuroflamingo_encoders.registry import build_encoder, encoder_card
    from neuroflamingo_encoders.weights_fit import sha256_of
    from neuroflamingo_encoders.weights_store import find_weights, how_to_get

    options = options or {}
    card = encoder_card(name, **options)
    if init is not None and weights is not None:
        raise UsageError("both weights and --init were given", expected="one of them")
    if init is not None or not card.cost.parameters:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = build_encoder(name, **options)
        return module, {"init": "random", "seed": seed} if card.cost.parameters else {"init": "no weights needed"}
    if weights is None and card.weights.source == "embedded":
        return _embedded_encoder(card)
    path = find_weights(name) if weights is None else Path(weights)
    if path is None:
        raise ModelError(
            f"the weights of '{name}' are not here",
            expected=f"--weights FILE.safetensors ({card.weights.licence}), or --init random",
            hint=how_to_get(card),
        )
    module = build_encoder(name, path, **options)
    return module, {"file": path.name, "sha256": sha256_of(path), "licence": card.weights.licence}


def embedded_weights(card: EncoderCard) -> Path:
    """The weight file of the embedded model whose encoder this is.

    Raises:
        ModelError: no embedded model has it (exit 69), or only with another card (exit 65).
    """
    from neuroflamingo.loading import MODELS, list_models

    others = []
    for model in list_models():
        described = json.loads((MODELS / model / "config.json").read_text(encoding="utf-8")).get("encoder") or {}
        if described.get("digest") == card.digest:
            return MODELS / model / "model.safetensors"
        others += [model] if described.get("name") == card.name else []
    raise ModelError(
        f"no embedded model holds the weights of '{card.name}'",
        expected=f"one with the card's digest {card.digest}",
        seen=f"{', '.join(others)} with another card" if others else "none with this encoder",
        hint="--init random, or --weights FILE",
        exit_code=65 if others else 69,
    )


def _embedded_encoder(card: EncoderCard) -> tuple[BrainEncoder, dict[str, Any]]:
    from safetensors import safe_open

    from neuroflamingo_encoders.registry import build_encoder
    from neuroflamingo_encoders.weights_fit import sha256_of

    path = embedded_weights(card)
    module = build_encoder(card.name)
    with safe_open(path, "pt") as stream:
        names = [name for name in stream.keys() if name.startswith(ENCODER_PART)]  # noqa: SIM118
        state = {name.removeprefix(ENCODER_PART): stream.get_tensor(name) for name in names}
    module.load_weights(state)
    origin = {"model": path.parent.name, "file": path.name, "sha256": sha256_of(path), "part": ENCODER_PART}
    return module, origin | {"licence": card.weights.licence}


def _wants_table(module: Any) -> bool:
    return hasattr(module, "set_coordinates") or hasattr(module, "set_gradient")


def _set_table(module: Any, table: str | Path | None) -> dict[str, Any]:
    """Give the encoder the table that its card demands; gives the table's name and hash."""
    import numpy as np
    import torch

    from neuroflamingo_encoders.weights_fit import sha256_of

    demands = [d.what for d in module.card.demands if ", by set_" in d.what]
    name = demands[0].partition(", by ")[0] if demands else "no table"
    if table is None or not _wants_table(module):
        raise UsageError(
            f"the encoder '{module.card.name}' needs {name}" if _wants_table(module) else "this encoder takes no table",
            expected="--table FILE" if _wants_table(module) else "no --table",
            hint=f"see {module.card.repository}" if _wants_table(module) else "leave --table out",
        )
    path = Path(table)
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}", expected=name, hint="check the path")
    try:
        text = path.read_text(encoding="utf-8").replace(",", " ").splitlines()
        rows = np.array([line.split() for line in text if line.strip()], dtype=np.float32)
    except (UnicodeDecodeError, ValueError) as error:
        raise ScanError(f"{path.name} is no table of numbers", seen=str(error)[:200], hint="check the file") from error
    if hasattr(module, "set_coordinates"):
        module.set_coordinates(torch.from_numpy(rows[:, -3:]))  # a column of labels may stand before X Y Z
    else:
        module.set_gradient(torch.from_numpy(rows))
    return {"file": path.name, "sha256": sha256_of(path)}


def _all_tokens(scans: Sequence[str | Path], road: _Road) -> Iterator[ScanTokens]:
    """Tokens of one scan after the other; a scan that fails is noted and passed over."""
    for number, scan in enumerate(scans, start=1):
        name = shown_name(scan)
        if road.progress:
            road.progress(name, number, len(scans))
        try:
            for prepared in prepare_for_encoder(Path(scan), road.encoder.card, road.how):
                yield tokens_of(road.encoder, prepared.tensor, prepared.about, road.device)
        except NeuroFlamingoError as failure:
            road.failures.append((name, failure))


def _chained(first: ScanTokens, rest: Iterator[ScanTokens]) -> Iterator[ScanTokens]:
    yield first
    yield from rest


def tokens_of(
    encoder: BrainEncoder, tensor: NDArray[np.float32], about: Mapping[str, Any], device: str, dtype: str = "float32"
) -> ScanTokens:
    """Tokens of one prepared tensor.

    Raises:
        ModelError: they are not finite, or too large for the type of numbers (exit 65).
    """
    import numpy as np
    import torch

    from neuroflamingo_encoders.token_files import ScanTokens

    scan = torch.from_numpy(np.ascontiguousarray(tensor))  # a window is a view of its run
    with torch.inference_mode():
        output = encoder(scan[None, None].to(device))
    tokens = output.tokens[0, 0].to(getattr(torch, dtype)).cpu()
    if not bool(tokens.isfinite().all()):
        raise ModelError(
            f"the encoder gives numbers that are not finite for {about['name']}",
            expected=f"numbers that {dtype} can hold",
            hint="check the weights: neuroflamingo models verify" + ("; or --dtype float32" * (dtype != "float32")),
            exit_code=65,
        )
    return ScanTokens(
        tokens=tokens.numpy(),
        mask=None if output.mask is None else output.mask[0, 0].cpu().numpy(),
        positions=None if output.positions is None else output.positions.float().cpu().numpy(),
        about=about,
    )


def _software() -> dict[str, Any]:
    from neuroflamingo.provenance import software

    return software().model_dump(mode="json")
