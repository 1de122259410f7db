"""A card's digest names the encoder's class, not where its module lies; what older digests named stays readable."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from neuroflamingo_encoders import EncoderCard, TokenStore, encoder_card, list_encoders
from neuroflamingo_encoders.card import current_digest
from neuroflamingo_encoders.registry import load_dotted
from neuroflamingo_preprocessing.spec import digest_of_plain

SOURCE = """
from neuroflamingo_encoders.contract import BrainEncoder


class Mine(BrainEncoder):
    pass
"""


def with_module_path(card: EncoderCard, module: str) -> tuple[dict, str]:
    """The card as it was stored before, in a module of that name, and its digest by the rule of that time."""
    moved = card.model_copy(update={"implementation": f"{module}:{card.implementation.partition(':')[2]}"})
    return moved.model_dump(mode="json"), digest_of_plain(moved._digested() | {"implementation": moved.implementation})


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
    assert model.encoder.card.digest != old


def test_a_token_store_with_the_older_digest_is_read(tmp_path: Path) -> None:
    card = encoder_card("tiny-t1w-cnn")
    TokenStore.create(tmp_path / "store", card=card, weights="w", origin={})
    head = json.loads((tmp_path / "store" / "store.json").read_text())
    head["declared"], head["card"] = with_module_path(card, "neuroflamingo_encoders.families.tiny_t1w.network")
    (tmp_path / "store" / "store.json").write_text(json.dumps(head))
    assert TokenStore(tmp_path / "store").card.digest == card.digest
