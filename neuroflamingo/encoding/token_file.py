"""`encode`: encode scans into a file of patch tokens, with full provenance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo.device import pick_device
from neuroflamingo.encoding.encoder_choice import EncoderChoice
from neuroflamingo_encoders.tokens.files import check_token_target, describe_tokens, write_tokens
from neuroflamingo_encoders.tokens.format import ScanTokens
from neuroflamingo_preprocessing.errors import ModelError, NeuroFlamingoError
from neuroflamingo_preprocessing.formats.dicom.archive import shown_name
from neuroflamingo_preprocessing.preparation import prepare
from neuroflamingo_preprocessing.preparation_options import Preparation
from neuroflamingo_preprocessing.software import software
from neuroflamingo_preprocessing.user_files import check_input

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from neuroflamingo_encoders.contract import BrainEncoder


@dataclass(frozen=True)
class EncodeResult:
    """Result of `encode`.

    Attributes:
        path: the token file.
        scans: number of encoded scans in it.
        failures: names of failed scans with their errors, in order.
    """

    path: Path
    scans: int
    failures: tuple[tuple[str, NeuroFlamingoError], ...]


@dataclass(frozen=True)
class _EncodingSetup:
    """All that each scan's way to its tokens has in common."""

    encoder: BrainEncoder
    device: str
    preparation: Preparation
    failures: list[tuple[str, NeuroFlamingoError]]
    progress: Callable[[str, int, int], None] | None


def encode(
    scans: Sequence[str | Path],
    output: str | Path,
    encoder: str | EncoderChoice,
    preparation: Preparation | None = None,
    *,
    device: str = "auto",
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> EncodeResult:
    """Encode scans and write their tokens to one file; for many scans see `encode_into_store`.

    Args:
        scans: NIfTI or MGH files, DICOM folders or zip archives: a volume for encoders of one 3D volume, a run in MNI
            space for encoders of runs and, with an atlas, of parcels; CIFTI parcel time series (`.ptseries.nii`) for
            encoders of parcels; arrays (`.npy`, `.npz`, `.tsv`, `.csv`) for all. A run yields one scan per window.
        output: a path that ends in `.zarr`, `.npz` or `.safetensors`.
        encoder: an encoder's name, or its name, options and weights.
        preparation: see `Preparation`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        overwrite: replace an existing output.
        progress: called with the scan's name, its number from 1, and the number of scans.

    Raises:
        NeuroFlamingoError: unknown encoder, no weights (exit 69), weights that do not fit (65), an output that cannot
            be written (73); for a single scan, or if all fail, that scan's own error.
    """
    target = check_token_target(output, overwrite=overwrite)
    for scan in scans:
        check_input(scan, "a scan or a prepared array")
    preparation = preparation or Preparation()
    choice = EncoderChoice(encoder) if isinstance(encoder, str) else encoder
    preparation.check_tables([None] * len(scans), choice.card.scan)
    place = pick_device(device)
    module, origin = choice.load()
    setup = _EncodingSetup(module.to(place), place, preparation, [], progress)
    metadata = describe_tokens(module.card, origin, software=_software(), device=place, dtype="float32")
    tokens = _all_tokens(scans, setup)
    try:
        first = next(tokens)
    except StopIteration:
        raise setup.failures[0][1] from None
    count = write_tokens(target, _chained(first, tokens), metadata, overwrite=overwrite)
    return EncodeResult(target, count, tuple(setup.failures))


def _all_tokens(scans: Sequence[str | Path], setup: _EncodingSetup) -> Iterator[ScanTokens]:
    """Yield the tokens of each scan; a scan that fails is recorded and skipped."""
    for number, scan in enumerate(scans, start=1):
        name = shown_name(scan)
        if setup.progress:
            setup.progress(name, number, len(scans))
        try:
            for window in prepare(scan, setup.encoder.card.scan, setup.preparation).windows:
                yield tokens_of(setup.encoder, window.tensor, window.metadata, setup.device)
        except NeuroFlamingoError as failure:
            setup.failures.append((name, failure))


def _chained(first: ScanTokens, rest: Iterator[ScanTokens]) -> Iterator[ScanTokens]:
    yield first
    yield from rest


def tokens_of(
    encoder: BrainEncoder, tensor: NDArray[np.float32], metadata: Mapping[str, Any], device: str, dtype: str = "float32"
) -> ScanTokens:
    """Encode one prepared tensor.

    Raises:
        ModelError: the tokens are not finite, or too large for the dtype (exit 65).
    """
    import numpy as np
    import torch

    scan = torch.from_numpy(np.ascontiguousarray(tensor))  # a window is a view of its run
    with torch.inference_mode():
        output = encoder(scan[None, None].to(device))
    tokens = output.tokens[0, 0].to(getattr(torch, dtype)).cpu()
    if not bool(tokens.isfinite().all()):
        raise ModelError(
            f"the encoder gives non-finite tokens for {metadata['name']}",
            expected=f"numbers that {dtype} can hold",
            hint="check the weights: neuroflamingo models verify" + ("; or --dtype float32" * (dtype != "float32")),
            exit_code=65,
        )
    return ScanTokens(
        tokens=tokens.numpy(),
        mask=None if output.mask is None else output.mask[0, 0].cpu().numpy(),
        positions=None if output.positions is None else output.positions.float().cpu().numpy(),
        metadata=metadata,
    )


def _software() -> dict[str, Any]:
    return software().model_dump(mode="json")
