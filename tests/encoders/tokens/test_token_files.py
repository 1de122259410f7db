"""Token files: what is written is read back in all three formats, and nothing else is taken for it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from neuroflamingo_encoders import registry
from neuroflamingo_encoders.build import build_encoder
from neuroflamingo_encoders.families.precomputed.cards import precomputed_card
from neuroflamingo_encoders.tokens.files import ENDINGS, describe_tokens, read_tokens, write_tokens
from neuroflamingo_encoders.tokens.format import ScanTokens
from neuroflamingo_preprocessing import drafts
from neuroflamingo_preprocessing.errors import ModelError, NotFoundError, OutputError, UsageError
from neuroflamingo_preprocessing.formats.zarr.zstd import HEADER_BYTES, MAGIC, content_size

CARD = precomputed_card(width=4)
ABOUT = describe_tokens(CARD, {"sha256": "0" * 64}, device="cpu")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scan(count: int = 5, width: int = 4, name: str = "sub-01", **more: Any) -> ScanTokens:
    tokens = np.random.default_rng(count).standard_normal((count, width)).astype(np.float32)
    return ScanTokens(tokens, metadata={"name": name, "geometry": [{"name": "resampling"}]}, **more)


def two() -> list[ScanTokens]:
    places = np.full((5, 3), np.nan, np.float32)
    places[0] = (1, 2, 3)
    return [scan(positions=places, mask=np.array([1, 1, 1, 1, 0], bool)), scan(3, name="ü \ud800"[:1])]


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_written_is_read_back(ending: str) -> None:
    path = Path("tokens" + ending)
    assert write_tokens(path, iter(two()), ABOUT) == 2
    assert [entry.name for entry in Path().iterdir()] == [path.name], "nothing else is left"
    found = read_tokens(path, card=CARD)
    assert found.card == CARD and found.metadata["weights"] == ABOUT["weights"] and found.metadata["device"] == "cpu"
    assert len(found.scans) == 2
    for read, wrote in zip(found.scans, two(), strict=True):
        assert dict(read.metadata) == dict(wrote.metadata) and set(read.arrays) == set(wrote.arrays)
        for name, value in wrote.arrays.items():
            assert read.arrays[name].dtype == value.dtype
            np.testing.assert_array_equal(read.arrays[name], value)
    tokens, mask = found.batch()
    assert tokens.shape == (1, 2, 5, 4) and mask[0].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]
    module = build_encoder("precomputed", width=4)
    import torch

    assert module(torch.from_numpy(tokens)).tokens.shape == (1, 2, 5, 4)


@pytest.mark.parametrize("ending", ENDINGS)
def test_outputs_are_kept_unless_they_may_be_replaced(ending: str) -> None:
    path = Path("tokens" + ending)
    write_tokens(path, two(), ABOUT)
    with pytest.raises(OutputError, match="--overwrite"):
        write_tokens(path, two(), ABOUT)
    assert write_tokens(path, [scan(7)], ABOUT, overwrite=True) == 1
    assert len(read_tokens(path).scans[0].tokens) == 7
    with pytest.raises(OutputError):
        write_tokens("absent/tokens" + ending, two(), ABOUT)
    with pytest.raises(OutputError, match="nothing to write"):
        write_tokens("empty" + ending, [], ABOUT)
    assert [entry.name for entry in Path().iterdir()] == [path.name]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_broken_run_leaves_the_old_file(ending: str) -> None:
    path = Path("tokens" + ending)
    write_tokens(path, two(), ABOUT)

    def broken() -> Any:
        yield scan()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tokens(path, broken(), ABOUT, overwrite=True)
    assert len(read_tokens(path).scans) == 2 and len(list(Path().iterdir())) == 1


def test_a_folder_that_is_no_store_is_never_replaced(place: Path) -> None:
    (place / "mine.zarr").mkdir()
    (place / "mine.zarr" / "thesis.txt").write_text("years")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="cannot be written"):
            write_tokens("mine.zarr", two(), ABOUT, overwrite=overwrite)
    assert (place / "mine.zarr" / "thesis.txt").read_text() == "years"


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_card_is_checked(ending: str) -> None:
    path = Path("tokens" + ending)
    write_tokens(path, two(), ABOUT)
    others = (precomputed_card(width=5), precomputed_card(width=4, tokens=5), registry.encoder_card("tiny-t1w-cnn"))
    for card in others:
        with pytest.raises(ModelError, match="not hold the tokens that were asked for") as caught:
            read_tokens(path, card=card)
        assert caught.value.exit_code == 65
    changed = dict(ABOUT, card=precomputed_card(width=5).model_dump(mode="json"))
    write_tokens(path, two(), changed, overwrite=True)
    with pytest.raises(ModelError, match="digest"):
        read_tokens(path)
    narrow = describe_tokens(precomputed_card(width=5), {})
    write_tokens(path, two(), narrow, overwrite=True)
    with pytest.raises(ModelError, match="width 5"):
        read_tokens(path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_arrays_that_do_not_go_together(ending: str) -> None:
    path = Path("tokens" + ending)
    wrong = (
        scan(mask=np.ones(4, bool)),
        scan(positions=np.zeros((5, 2), np.float32)),
        ScanTokens(np.zeros((5, 4), np.int64)),
        ScanTokens(np.zeros(5, np.float32)),
    )
    for one in wrong:
        write_tokens(path, [one], ABOUT, overwrite=True)
        with pytest.raises(ModelError, match="not a complete token file"):
            read_tokens(path)


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_arrays_of_another_program(ending: str) -> None:
    path = Path("theirs" + ending)
    tokens = scan().tokens
    put = np.savez if ending == ".npz" else lambda path, **arrays: save_file(arrays, path)
    put(path, tokens=tokens)
    found = read_tokens(path, card=CARD)
    assert found.card is None and np.array_equal(found.scans[0].tokens, tokens)
    with pytest.raises(ModelError, match="no card"):
        read_tokens(path, card=registry.encoder_card("tiny-t1w-cnn"))
    put(path, features=tokens)
    with pytest.raises(ModelError, match="features"):
        read_tokens(path)


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_truncated_files(ending: str) -> None:
    path = Path("tokens" + ending)
    write_tokens(path, two(), ABOUT)
    content = path.read_bytes()
    for keep in (0, 4, 30, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:keep])
        with pytest.raises(ModelError) as caught:
            read_tokens(path)
        assert caught.value.exit_code == 65


def test_pickles_in_npz_are_not_read(place: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return open, (str(place / "ran"), "w")

    np.savez("a.npz", tokens=np.array([[Attack()]], dtype=object))
    with pytest.raises(ModelError, match="pickle"):
        read_tokens("a.npz")
    assert not (place / "ran").exists()


class TestHostileStores:
    @pytest.fixture
    def store(self) -> Path:
        write_tokens("t.zarr", two(), ABOUT)
        return Path("t.zarr")

    def refused(self, path: Path) -> str:
        with pytest.raises(ModelError) as caught:
            read_tokens(path)
        assert caught.value.exit_code == 65
        return str(caught.value)

    def change(self, file: Path, **values: Any) -> None:
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    def test_an_array_that_claims_terabytes(self, store: Path) -> None:
        array = store / "scans" / "00000" / "tokens" / "zarr.json"
        grid = {"name": "regular", "configuration": {"chunk_shape": [10**7, 10**7]}}
        self.change(array, shape=[10**7, 10**7], chunk_grid=grid)
        assert "claims" in self.refused(store)
        self.change(array, shape=[5, 4], data_type="object")
        self.refused(store)

    def test_a_link_out_of_the_store(self, store: Path, place: Path) -> None:
        (place / "secret").write_text("x")
        os.symlink(place / "secret", store / "scans" / "00000" / "link")
        assert "a link" in self.refused(store)

    def test_missing_parts(self, store: Path) -> None:
        shutil.rmtree(store / "scans" / "00000")
        assert "scans are missing" in self.refused(store)
        shutil.rmtree(store / "scans")
        self.refused(store)
        (store / "zarr.json").write_text("{")
        self.refused(store)

    def test_another_store(self, store: Path) -> None:
        self.change(store / "zarr.json", attributes={})
        assert "not a store of" in self.refused(store)

    def test_any_zarr_reader_reads_it(self, store: Path) -> None:
        import zarr

        root: Any = zarr.open_group(store, mode="r")
        assert root.metadata.zarr_format == 3 and root.attrs["encoder"] == "precomputed"
        assert root["scans/00000/tokens"].shape == (5, 4) and root["scans/00001"].attrs["name"] == "ü"


def test_paths() -> None:
    with pytest.raises(NotFoundError):
        read_tokens("gone.zarr")
    Path("a.h5").write_text("x")
    for call in (lambda: read_tokens("a.h5"), lambda: write_tokens("a.h5", two(), ABOUT)):
        with pytest.raises(UsageError):
            call()


def test_the_old_store_comes_back_if_the_new_one_cannot_take_over(monkeypatch: pytest.MonkeyPatch) -> None:
    write_tokens("t.zarr", two(), ABOUT)
    rename = Path.rename

    def failing(self: Path, target: Any) -> Path:
        if Path(target).name == "t.zarr" and (self / "zarr.json").exists() and self.suffix == ".tmp":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    monkeypatch.setattr(drafts, "exchange", lambda one, other: False)  # a file system that cannot do it in one step
    with pytest.raises(OutputError) as caught:
        write_tokens("t.zarr", [scan(9)], ABOUT, overwrite=True)
    assert caught.value.exit_code == 74
    assert len(read_tokens("t.zarr").scans) == 2 and len(list(Path().iterdir())) == 1


def test_the_order_of_scans_is_that_of_their_numbers() -> None:
    write_tokens("t.zarr", (scan(n + 1) for n in range(12)), ABOUT)
    assert [len(one.tokens) for one in read_tokens("t.zarr").scans] == list(range(1, 13))


@pytest.mark.parametrize("size", [1, 255, 256, 257, 65_791, 65_792, 10**6])
def test_zstandard_frames_say_how_much_they_hold(size: int) -> None:
    from numcodecs import Zstd

    packed = bytes(Zstd(level=1).encode(np.zeros(size, np.uint8)))  # type: ignore[arg-type]
    assert content_size(packed[:HEADER_BYTES]) == size
    unsaid = MAGIC + bytes([0x00, 0x58]) + packed[6:]  # neither a single segment nor a size: only a window
    assert content_size(unsaid) is None
    for other in (b"", packed[1:], packed[:5], b"\x50\x2a\x4d\x18" + bytes(20)):  # the last: a frame to be skipped
        with pytest.raises(ValueError, match="not a zstandard frame"):
            content_size(other)
