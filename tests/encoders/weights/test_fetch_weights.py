"""Fetching: resumed after cuts, never mixed, wrong hashes not kept, and no network unless it is asked for."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neuroflamingo_encoders import registry
from neuroflamingo_encoders.card import EncoderCard, Weights
from neuroflamingo_encoders.families.precomputed.cards import precomputed_card
from neuroflamingo_encoders.weights import cache, fetch, http_download
from neuroflamingo_encoders.weights.cache import find_weights, list_weights, weights_folder
from neuroflamingo_encoders.weights.fetch import fetch_weights
from neuroflamingo_encoders.weights.http_download import Remote, download
from neuroflamingo_preprocessing.errors import ModelError, OutputError, UsageError
from tests.encoders.weights.weight_server import COMMIT, Shop, serving

CONTENT = os.urandom(300_000)
HASH = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own home folder, the network allowed, no waiting between attempts."""
    monkeypatch.setenv("NEUROFLAMINGO_HOME", str(tmp_path / "home"))
    for name in fetch.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(http_download.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(http_download, "CHUNK", 50_000)
    return tmp_path / "home"


@pytest.fixture
def shop() -> Iterator[Shop]:
    with serving(net_safetensors=CONTENT) as server:
        yield server


def offer(monkeypatch: pytest.MonkeyPatch, source: str, **weights: Any) -> EncoderCard:
    """An encoder `net` whose weights are at `source`."""
    terms = {"licence": "MIT", "commercial": True, "redistribution": True, "derivatives": True}
    fields = {"name": "net", "weights": Weights(source=source, **(terms | weights))}
    card = precomputed_card(width=4).model_copy(update=fields)
    monkeypatch.setitem(registry.BUILT_IN, "net", "unused:unused")
    load = registry.load_dotted
    monkeypatch.setattr(registry, "load_dotted", lambda name, dotted: card if name == "net" else load(name, dotted))
    return card


def test_a_file_arrives_whole_with_its_note(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, f"{shop.url}/net.safetensors", sha256=HASH)
    told: list[tuple[int, int | None]] = []
    fetched = fetch_weights("net", progress=lambda done, total: told.append((done, total)))
    path = Path(fetched.path)
    assert path.read_bytes() == CONTENT and fetched.sha256 == HASH
    assert fetched.pinned and fetched.ready and fetched.resumed_from == 0
    assert told[-1] == (len(CONTENT), len(CONTENT)) and len(told) > 3
    assert find_weights("net") == path
    assert json.loads((path.parent / "net.safetensors.source.json").read_text())["sha256"] == HASH
    assert not list(path.parent.glob("*.part*"))
    row = next(row for row in list_weights() if row.name == "net")
    assert row.present and row.bytes == len(CONTENT)
    requests = len(shop.seen)
    assert fetch_weights("net").sha256 == HASH and len(shop.seen) == requests, "it is here already"


def test_a_cut_connection_is_gone_on_with(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, f"{shop.url}/net.safetensors", sha256=HASH)
    shop.cuts = [100_000, 60_000]
    assert Path(fetch_weights("net").path).read_bytes() == CONTENT
    assert [wanted for _, _, wanted in shop.seen] == [None, "bytes=100000-", "bytes=160000-"]


@pytest.mark.parametrize("pinned", [True, False])
def test_a_later_call_goes_on_where_the_first_one_stopped(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, pinned: bool
) -> None:
    offer(monkeypatch, f"{shop.url}/net.safetensors", sha256=HASH if pinned else None)
    shop.cuts = [100_000] + [0] * (http_download.ATTEMPTS - 1)
    with pytest.raises(ModelError, match="100,000 bytes are kept") as caught:
        fetch_weights("net")
    assert caught.value.exit_code == 69 and "run the same command again" in str(caught.value)
    assert find_weights("net") is None, "an unfinished file does not bear its name"
    fetched = fetch_weights("net")
    assert fetched.resumed_from == 100_000 and Path(fetched.path).read_bytes() == CONTENT
    assert fetched.pinned is pinned


def test_a_file_that_changed_meanwhile_is_not_mixed(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, f"{shop.url}/net.safetensors")
    shop.cuts = [100_000] + [0] * (http_download.ATTEMPTS - 1)
    with pytest.raises(ModelError):
        fetch_weights("net")
    shop.files["/net.safetensors"] = other = os.urandom(300_000)
    assert Path(fetch_weights("net").path).read_bytes() == other


def test_without_a_tag_and_a_hash_a_download_begins_anew(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, f"{shop.url}/net.safetensors")
    shop.etag = False
    part = weights_folder("net") / "net.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1000)
    fetched = fetch_weights("net")
    assert fetched.resumed_from == 0 and Path(fetched.path).read_bytes() == CONTENT


def test_a_server_without_ranges_sends_all_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, f"{shop.url}/net.safetensors", sha256=HASH)
    shop.cuts, shop.ranges = [100_000], False
    assert Path(fetch_weights("net").path).read_bytes() == CONTENT


def test_a_complete_part_and_a_part_that_is_too_long(shop: Shop, tmp_path: Path) -> None:
    remote = Remote(f"{shop.url}/net.safetensors")
    part = tmp_path / "x.part"
    part.write_bytes(CONTENT)
    assert download(remote, part, trusted=True) == len(CONTENT), "the server says that nothing is missing"
    part.write_bytes(CONTENT + b"more")
    download(remote, part, trusted=True)
    assert part.read_bytes() == CONTENT


def test_a_wrong_hash_is_refused_and_not_kept(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, f"{shop.url}/net.safetensors", sha256="0" * 64)
    with pytest.raises(ModelError, match="not the file that the card of 'net' declares") as caught:
        fetch_weights("net")
    assert caught.value.exit_code == 65 and HASH in str(caught.value)
    assert [path.name for path in weights_folder("net").iterdir()] == [".lock"]


def test_a_file_that_was_changed_here_is_noticed(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, f"{shop.url}/net.safetensors", sha256=HASH)
    path = Path(fetch_weights("net").path)
    path.write_bytes(b"changed")
    with pytest.raises(ModelError, match="--overwrite"):
        fetch_weights("net")
    assert fetch_weights("net", overwrite=True).sha256 == HASH


@pytest.mark.parametrize("variable", fetch.OFFLINE)
def test_switched_off(shop: Shop, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    offer(monkeypatch, f"{shop.url}/net.safetensors")
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ModelError, match=f"{variable}=1") as caught:
        fetch_weights("net")
    assert caught.value.exit_code == 69 and not shop.seen


def test_no_server_and_no_file(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, f"{shop.url}/gone.safetensors")
    with pytest.raises(ModelError, match="HTTP 404") as caught:
        fetch_weights("net")
    assert caught.value.exit_code == 69 and len(shop.seen) == 1, "a refusal is not asked for again"
    offer(monkeypatch, "http://127.0.0.1:9/net.safetensors")
    with pytest.raises(ModelError, match="could not be downloaded") as caught:
        fetch_weights("net")
    assert caught.value.exit_code == 69


def test_plain_http_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not downloaded"):
        download(Remote("http://example.org/net.safetensors"), tmp_path / "x.part")


def test_an_unwritable_folder(shop: Shop, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, f"{shop.url}/net.safetensors")
    home.write_text("a file, not a folder")
    with pytest.raises(OutputError, match="NEUROFLAMINGO_HOME") as caught:
        fetch_weights("net")
    assert caught.value.exit_code == 73


def test_two_processes_do_not_write_one_part(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    offer(monkeypatch, f"{shop.url}/net.safetensors")
    weights_folder("net").mkdir(parents=True)
    with FileLock(weights_folder("net") / ".lock", thread_local=False), pytest.raises(OutputError) as caught:
        fetch_weights("net")
    assert caught.value.exit_code == 75


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("swift", "with a browser"),
        ("brain-jepa-vitb", "jepa-ep300.pth.tar"),
        ("brainmt", "none are published"),
        ("tiny-t1w-cnn", "in the package"),
        ("swfit", "did you mean swift"),
    ],
)
def test_what_cannot_be_fetched_says_what_to_do(name: str, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        fetch_weights(name)
    assert caught.value.exit_code == (66 if name == "swfit" else 69)


def test_no_card_claims_a_hash_without_a_file_and_hubs_are_known() -> None:
    rows = {row.name: row for row in list_weights()}
    assert not [row for row in rows.values() if row.sha256 and not row.file]
    assert cache.hub_repository(rows["brainlm-13m"].source) == "vandijklab/brainlm"
    assert cache.hub_repository(rows["swift"].source) is None
    assert not any(row.present for row in rows.values())


class TestHub:
    """The hub's answers are a server's here; huggingface_hub's own client asks it."""

    @pytest.fixture(autouse=True)
    def online(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_ENDPOINT", shop.url)
        monkeypatch.setenv("HF_TOKEN", "a-secret")
        shop.files = {"/old/pytorch_model.bin": CONTENT, "/old/config.json": b"{}", "/new/model.safetensors": b"new"}

    def test_a_folder_of_a_repository(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        offer(monkeypatch, "https://huggingface.co/lab/net", file="old")
        shop.cuts = [120_000]
        fetched = fetch_weights("net")
        assert Path(fetched.path) == weights_folder("net") / "pytorch_model.bin"
        assert Path(fetched.path).read_bytes() == CONTENT
        assert fetched.revision == COMMIT and fetched.declared == HASH and not fetched.pinned and not fetched.ready
        assert find_weights("net") is None, "not safetensors: to be converted first"
        assert f"/lab/net/resolve/{COMMIT}/old/pytorch_model.bin" in {path for _, path, _ in shop.seen}
        assert fetch_weights("net", file="new/model.safetensors").ready

    def test_the_cards_revision_is_asked_for(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        offer(monkeypatch, "https://huggingface.co/lab/net", file="new/model.safetensors", revision="a" * 40)
        fetch_weights("net")
        assert shop.seen[0][1] == f"/api/models/lab/net/revision/{'a' * 40}"

    def test_bytes_that_the_hub_does_not_declare_are_not_kept(self, shop: Shop, monkeypatch) -> None:
        offer(monkeypatch, "https://huggingface.co/lab/net", file="old")
        shop.cuts = [100_000] + [0] * (http_download.ATTEMPTS - 1)
        with pytest.raises(ModelError):
            fetch_weights("net")
        part = weights_folder("net") / "pytorch_model.bin.part"
        part.write_bytes(b"x" * 100_000)
        with pytest.raises(ModelError, match="the source itself declares"):
            fetch_weights("net")
        assert not part.exists()

    def test_several_files_are_listed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        offer(monkeypatch, "https://huggingface.co/lab/net")
        assert Path(fetch_weights("net").path).name == "model.safetensors", "the only safetensors file"
        offer(monkeypatch, "https://huggingface.co/lab/net", file="other")
        with pytest.raises(ModelError, match=r"old/pytorch_model\.bin(.|\n)*--file PATH"):
            fetch_weights("net")

    def test_gated(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        offer(monkeypatch, "https://huggingface.co/lab/net", gated=True)
        shop.gated = True
        with pytest.raises(ModelError, match="accept the terms") as caught:
            fetch_weights("net")
        assert caught.value.exit_code == 69 and "a-secret" not in str(caught.value)

    def test_no_connection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        offer(monkeypatch, "https://huggingface.co/lab/net")
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(ModelError, match="a connection to the hub") as caught:
            fetch_weights("net")
        assert caught.value.exit_code == 69

    def test_a_file_is_not_asked_of_a_plain_address(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        offer(monkeypatch, f"{shop.url}/net.safetensors")
        with pytest.raises(UsageError):
            fetch_weights("net", file="x")


def test_a_card_without_a_revision_keeps_its_digest() -> None:
    """Saved models name the digest of their encoder's card: the new field must not change it."""
    card = precomputed_card(width=4)
    assert "revision" not in card.model_dump(mode="json")["weights"]
    assert card.digest == EncoderCard.model_validate(card.model_dump(mode="json")).digest
    pinned = card.weights.model_copy(update={"revision": "a" * 40})
    assert pinned.model_dump()["revision"] == "a" * 40
    assert card.model_copy(update={"weights": pinned}).digest == card.digest
