"""Reading and checking of a recipe's data: manifests, splits, and the encoder that a token store must match."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from neuroflamingo.data.filters import check_leaks, keep
from neuroflamingo.data.manifest import Sample, read_manifest
from neuroflamingo.encoding.encode_job import encoder_identity
from neuroflamingo.recipe.sources import local_folder
from neuroflamingo_preprocessing.errors import ConfigError
from neuroflamingo_preprocessing.files import sha256_of

if TYPE_CHECKING:
    from neuroflamingo.model.neuroflamingo import NeuroFlamingo
    from neuroflamingo.recipe.schema import DataSettings, Recipe


def read_splits(
    data: DataSettings, *, allow_download: bool = False
) -> tuple[Path, list[Sample], list[Sample], Counter[str]]:
    """Read the splits: data folder, training samples, validation samples, and counts of dropped training samples.

    Raises:
        NeuroFlamingoError: see `local_folder`, `read_manifest` and `check_leaks`.
    """
    root = Path(data.source)
    if not root.is_dir():
        root = local_folder(data.source, allow_download=allow_download, kind="dataset")
    train = read_manifest([root / name for name in data.train])
    held_out = read_manifest([root / name for name in data.validation]) if data.validation else []
    check_leaks(train, held_out)
    kept, dropped = keep(train, data.min_answer_words, data.drop_duplicates)
    return root, kept, held_out, Counter(dropped.as_dict())


def identity_for(recipe: Recipe, model: NeuroFlamingo) -> str | None:
    """Identity of the encoder that a token store must match; None if the recipe has no store.

    Raises:
        ConfigError: the encoder is trainable, so that its tokens change while those of a store do not.
    """
    if recipe.data.tokens is None or model.encoder is None:
        return None
    if moving := [name for name, value in model.encoder.named_parameters() if value.requires_grad]:
        raise ConfigError(
            "the encoder is trained, but its tokens come from a store",
            expected="a frozen encoder, or scans",
            seen=f"{len(moving)} trainable parameters, first {moving[0]}",
            hint="leave data.tokens out, or train no part of the encoder",
        )

    table = recipe.model.encoder.table if recipe.model.encoder else None
    return encoder_identity(model.encoder, sha256_of(Path(table)) if table else None)
