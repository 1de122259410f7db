"""`ScanStore`: prepared scans on disk, keyed by what they were made of; see `items` for the layout."""

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
    """Prepared scan: an array `tensor` `[window, axes of the card]`, one shard per window."""

    def element(self, part: Any) -> dict[str, NDArray[Any]]:
        """Element of a dataset: `scan`, the tensor of one window, or a part of it."""
        return {"scan": self.read(part)}


class ScanStore(ItemStore[StoredScan]):
    """Folder of prepared scans, which any number of processes may read and write at the same time.

    Args:
        path: folder of the store.

    Raises:
        NotFoundError: no such folder.
        ModelError: not a store, or one of another version (exit 65).

    Example:
        >>> import numpy as np
        >>> from neuroflamingo_preprocessing.stores.items import item_key
        >>> store = ScanStore.create("store", encoder="mine", card_digest="0" * 64, spec_digest="1" * 64)
        >>> key = item_key("2" * 64, "1" * 64, {})
        >>> tensor = np.ones((1, 8, 8, 8), np.float32)
        >>> store.put(key, [tensor], ["channel", "x", "y", "z"], {"name": "sub-01_T1w.nii.gz"})
        True
        >>> key in store, len(store), store[key].metadata["name"]
        (True, 1, 'sub-01_T1w.nii.gz')
        >>> store[key].read((0, 0, slice(2), 0)).shape
        (2, 8)
    """

    FORMAT: ClassVar[str] = "neuroflamingo-scan-store"
    NOUN: ClassVar[str] = "scan store"
    SAME: ClassVar[tuple[str, ...]] = ("spec",)
    ITEM: ClassVar[type[StoredItem]] = StoredScan

    @classmethod
    def create(cls, path: str | Path, *, encoder: str, card_digest: str, spec_digest: str) -> ScanStore:
        """Create a store, or open an existing one for the same spec.

        Args:
            path: folder of the store.
            encoder: name of the encoder, for people.
            card_digest, spec_digest: digests of its card and of `card.scan`.

        Raises:
            OutputError: the folder holds something else, or cannot be created (exit 73).
            ModelError: a store for another preparation (exit 65).
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
        self, key: str, windows: Sequence[NDArray[np.float32]], axes: Sequence[str], metadata: Mapping[str, Any]
    ) -> bool:
        """Write an item; False if it existed already, or another process wrote it in the meantime.

        Args:
            key: see `item_key`.
            windows: tensors of one shape, with the axes of the card.
            axes: names of these axes.
            metadata: plain data.

        Raises:
            OutputError: it cannot be written (exit 74); nothing of it is left.
        """
        return self._put(key, metadata, lambda draft: _write_tensor(draft / "tensor", windows, axes))

    def index(self) -> pyarrow.Table:
        """Table with one row per item (key, name, BIDS entities, shape, quality, ...); see `read_index`."""
        return read_index(self)


def _write_tensor(path: Path, windows: Sequence[NDArray[np.float32]], axes: Sequence[str]) -> None:
    """Write each window as a shard; chunks of 64 voxels along spatial axes, of full length along others, zstd 1."""
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
        config={"write_empty_chunks": True},  # so that a missing shard is an error, not a volume of zeros
    )
    for index, window in enumerate(windows):
        array[index] = window
