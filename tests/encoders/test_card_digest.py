"""A card's digest names the encoder's class, not where its module lies; what older digests named stays readable."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from neuroflamingo.encoding.encode_job import EncodeJob
from neuroflamingo.encoding.encoder_choice import EncoderChoice
from neuroflamingo_encoders import EncoderCard, TokenStore, encoder_card, list_encoders
from neuroflamingo_encoders.card import current_digest
from neuroflamingo_encoders.registry import load_dotted
from neuroflamingo_encoders.weights.cache import hub_repository
from neuroflamingo_preprocessing.errors import ModelError
from neuroflamingo_preprocessing.preparation_options import Preparation
from neuroflamingo_preprocessing.spec import digest_of_plain
from neuroflamingo_preprocessing.stores.items import item_key

SOURCE = """
from neuroflamingo_encoders.contract import BrainEncoder


class Mine(BrainEncoder):
    pass
"""


def with_module_path(card: EncoderCard, module: str) -> tuple[dict, str]:
    """The card as it was stored before, in a module of that name, and its digest by the rule of that time."""
    moved = card.model_copy(update={"implementation": f"{module}:{card.implementation.partition(':')[2]}"})
    declared = moved.model_dump(mode="json")
    plain = {key: value for key, value in declared.items() if key != "options" and (key != "network" or value)}
    return declared, digest_of_plain(plain)


def pinned(card: EncoderCard) -> EncoderCard:
    """The card once somebody has found out which file it is, at another address."""
    where = {"source": "https://example.org/a/b", "file": "c.bin", "sha256": "a" * 64, "revision": "b" * 40}
    return card.model_copy(update={"weights": card.weights.model_copy(update=where)})


def test_a_moved_module_keeps_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    card = encoder_card("tiny-t1w-cnn")
    (tmp_path / "flat_module.py").write_text(SOURCE)
    before = card.model_copy(update={"implementation": "flat_module:Mine"})
    assert load_dotted("mine", before.implementation).__module__ == "flat_module"
    (tmp_path / "folder").mkdir()
    (tmp_path / "flat_module.py").rename(tmp_path / "folder" / "network.py")
    sys.modules.pop("flat_module")
    after = card.model_copy(update={"implementation": "folder.network:Mine"})
    assert load_dotted("mine", after.implementation).__module__ == "folder.network"
    assert after.digest == before.digest


def test_another_class_or_any_other_change_is_another_digest() -> None:
    card = encoder_card("tiny-t1w-cnn")
    other = card.model_copy(update={"implementation": card.implementation + "2"})
    assert len({card.digest, other.digest, card.model_copy(update={"version": "x"}).digest}) == 3


@pytest.mark.parametrize("name", list_encoders())
def test_digests_of_the_older_rule_become_those_of_today(name: str) -> None:
    card = encoder_card(name)
    declared, old = with_module_path(card, "some_old.place")
    assert old != card.digest
    assert current_digest(declared, old) == card.digest
    assert current_digest(declared | {"version": "another"}, old) == old, "a changed card must not pass"
    assert current_digest(None, old) == old and current_digest(declared, None) is None


def test_a_model_saved_with_the_older_digest_is_read(tmp_path: Path) -> None:
    from neuroflamingo import load
    from neuroflamingo.checkpoints.local_models import find_model

    folder = tmp_path / "model"
    shutil.copytree(find_model("tiny-t1w"), folder)
    config = json.loads((folder / "config.json").read_text())
    declared, old = with_module_path(encoder_card("tiny-t1w-cnn"), "neuroflamingo_encoders.families.tiny_t1w.network")
    config["encoder"] |= {"card": declared, "digest": old}
    (folder / "config.json").write_text(json.dumps(config))
    model, _ = load(folder, device="cpu")
    assert encoder_card("tiny-t1w-cnn").digest != old and model.encoder is not None


def test_a_token_store_with_the_older_digest_is_read(tmp_path: Path) -> None:
    card = encoder_card("tiny-t1w-cnn")
    TokenStore.create(tmp_path / "store", card=card, weights="w", origin={})
    head = json.loads((tmp_path / "store" / "store.json").read_text())
    head["declared"], head["card"] = with_module_path(card, "neuroflamingo_encoders.families.tiny_t1w.network")
    (tmp_path / "store" / "store.json").write_text(json.dumps(head))
    assert TokenStore(tmp_path / "store").card.digest == card.digest


@pytest.mark.parametrize("name", list_encoders())
def test_a_pin_and_the_place_of_the_weights_are_no_part_of_the_digest(name: str) -> None:
    card = encoder_card(name)
    assert pinned(card).digest == card.digest and pinned(card) != card
    for old in (*card.former_digests, *pinned(card).former_digests):
        assert old != card.digest
    for stored in (card, pinned(card)):
        declared = stored.model_dump(mode="json")
        assert {current_digest(declared, old) for old in stored.former_digests} == {card.digest}
    other = card.weights.model_copy(update={"strip_prefixes": ("something.",)})
    assert card.model_copy(update={"weights": other}).digest != card.digest


def test_the_embedded_model_has_a_digest_of_the_former_rule() -> None:
    from neuroflamingo.checkpoints.local_models import find_model
    from neuroflamingo.encoding.encoder_choice import embedded_weights

    stored = json.loads((find_model("tiny-t1w") / "config.json").read_text())["encoder"]
    card = encoder_card("tiny-t1w-cnn")
    assert stored["digest"] == card.former_digests[0] != card.digest
    assert embedded_weights(card).parent == find_model("tiny-t1w")


def test_a_model_is_read_after_its_encoder_was_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuroflamingo.model.pretrained import build_encoder_from_config, describe_encoder
    from neuroflamingo_encoders import build_encoder, registry

    card = encoder_card("medicalnet-resnet10", stage=1)
    described = describe_encoder(build_encoder("medicalnet-resnet10", stage=1))
    moved = described | {"card": pinned(card).model_dump(mode="json"), "digest": pinned(card).former_digests[0]}
    monkeypatch.setattr(registry, "encoder_card", lambda name, **_: pinned(card))
    for description in (described, moved):
        assert build_encoder_from_config(description).card.digest == card.digest


def test_a_token_store_is_continued_after_a_pin_and_after_another_rule(tmp_path: Path) -> None:
    card = encoder_card("tiny-t1w-cnn")
    first = TokenStore.create(tmp_path / "store", card=pinned(card), weights="w", origin={})
    assert TokenStore.create(tmp_path / "store", card=card, weights="w", origin={}).head == first.head
    head = json.loads((tmp_path / "store" / "store.json").read_text())
    head |= {"declared": card.model_dump(mode="json"), "card": card.former_digests[0]}
    (tmp_path / "store" / "store.json").write_text(json.dumps(head))
    again = TokenStore.create(tmp_path / "store", card=pinned(card), weights="w", origin={})
    assert again.head["card"] == card.former_digests[0] and again.card_digest == card.digest
    job = EncodeJob(again.path, card, Preparation(), EncoderChoice(card.name), "w", "cpu", "float32")
    assert job.key("1" * 64, {}) == item_key("1" * 64, card.former_digests[0], {"weights": "w", "dtype": "float32"})
    with pytest.raises(ModelError, match="for something else"):
        TokenStore.create(tmp_path / "store", card=card.model_copy(update={"version": "x"}), weights="w", origin={})


@pytest.mark.parametrize("layers", [10, 18, 34, 50])
def test_medicalnet_is_where_monai_finds_it(layers: int) -> None:
    from monai.networks.nets import resnet

    weights = encoder_card(f"medicalnet-resnet{layers}").weights
    assert hub_repository(weights.source) == f"{resnet.MEDICALNET_HUGGINGFACE_REPO_BASENAME}{layers}"
    assert weights.file == f"{resnet.MEDICALNET_HUGGINGFACE_FILES_BASENAME}{layers}_23dataset.pth"
