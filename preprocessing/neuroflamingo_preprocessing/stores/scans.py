"""`ScanStore`: prepared scans on disk, addressed by what they were made of. How items are kept: `item_store`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from neuroflamingo_preprocessing.errors import ModelError
from neuroflamingo_preprocessing.stores.item_index import read_index
from neuroflamingo_preprocessing.stores.items import ItemStore, StoredItem, item_key

if TYPE_CHECKING:
    import numpy as np
    import pyarrow
    from numpy.typing import NDArray

    from neuroflamingo_preprocessing.spec import ScanSpec

__all__ = ["ScanStore", "StoredScan", "item_key"]

CHUNK = 64
SPACE_AXES = ("x", "y", "z")


class StoredScan(StoredItem):
    """A prepared scan: `tensor` `[window, axes of the card]`, a shard for each window."""

    def element(self, part: Any) -> dict[str, NDArray[Any]]:
        """`scan`: the tensor of one window, or a part of it."""
        return {"scan": self.read(part)}


class ScanStore(ItemStore[StoredScan]):
    """A folder of prepared scans. Any number of processes may read and write one store.

    Args:
        path: the folder.

    Raises:
        NotFoundError: no such folder.
        ModelError: no store, or one of another version (exit 65).
    """

    FORMAT: ClassVar[str] = "neuroflamingo-scan-store"
    NOUN: ClassVar[str] = "scan store"
    SAME: ClassVar[tuple[str, ...]] = ("spec",)
    ITEM: ClassVar[type[StoredItem]] = StoredScan

    @classmethod
    def create(cls, path: str | Path, *, encoder: str, card_digest: str, spec_digest: str) -> ScanStore:
        """A new store, or the one that is there if it is for the same input of an encoder.

        Raises:
            OutputError: the folder holds something else, or cannot be made (exit 73).
            ModelError: it is a store for another preparation (exit 65).
        """
        return cls._create(path, {"encoder": encoder, "card": card_digest, "spec": spec_digest})

    def check_made_for(self, encoder: str, spec: ScanSpec) -> ScanStore:
        """The store itself, if its scans were prepared for the input of an encoder.

        Raises:
            ModelError: they were not (exit 65).
        """
        if self.head.get("spec") != spec.digest:
            raise ModelError(
                f"the scans in {self.path.name} were not prepared for '{encoder}'",
                expected=f"spec {spec.digest[:12]}: {spec.describe()}",
                seen=f"spec {str(self.head.get('spec'))[:12]}, for {self.head.get('encoder')}",
                hint=f"neuroflamingo prepare INPUT --encoder {encoder} -o FOLDER",
                exit_code=65,
            )
        return self

    def put(
        self, key: str, windows: Sequence[NDArray[np.float32]], axes: Sequence[str], about: Mapping[str, Any]
    ) -> bool:
        """Write an item; False if it was there already, or another process was quicker.

        Args:
            key: see `item_key`.
            windows: tensors of one shape, the axes of the card.
            axes: their names.
            about: plain data.

        Raises:
            OutputError: it cannot be written (exit 74); nothing of it is left.
        """
        return self._put(key, about, lambda draft: _write_tensor(draft / "tensor", windows, axes))

    def index(self) -> pyarrow.Table:
        """One row an item: key, name, BIDS entities, shape, dtype, windows, quality, warnings; see `read_index`."""
        return read_index(self)


def _write_tensor(path: Path, windows: Sequence[NDArray[np.float32]], axes: Sequence[str]) -> None:
    """One shard a window; 64 voxels along each axis of space and all of the others in a chunk; zstd 1, crc32c."""
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec

    shape = windows[0].shape
    chunk = [min(CHUNK, n) if name in SPACE_AXES else n for name, n in zip(axes, shape, strict=True)]
    shard = [c * -(-n // c) for c, n in zip(chunk, shape, strict=True)]
    array = zarr.create_array(
        path,
        shape=(len(windows), *shape),
        dtype="float32",
        chunks=(1, *chunk),
        shards=(1, *shard),
        compressors=(ZstdCodec(level=1), Crc32cCodec()),
        dimension_names=("window", *axes),
        zarr_format=3,
        config={"write_empty_chunks": True},  # so that a shard that is missing is a loss, not a volume of zeros
    )
    for index, window in enumerate(windows):
        array[index] = window
