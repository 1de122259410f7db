"""Two processes with FSDP2 learn what one process learns: each decoder layer, each gated block and the rest a unit."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from neuroflamingo.model.media import Media, make_plan
from neuroflamingo.model.neuroflamingo import NeuroFlamingo
from neuroflamingo.training.parallel import shard
from tests.tiny import tiny_batch, tiny_model

WORLD, STEPS = 2, 3
# A head of its own; tied; media by the scope; a process that has only text, and one that has only empty slots.
CASES = [
    ("llama", False, False),
    ("gpt2", True, False),
    ("gptj", True, False),
    ("opt", False, True),
    ("qwen2", False, True),
]


def test_the_tensors_of_media_are_found_and_put_back():
    time, ordinal = torch.tensor([[0, 1, 1, 2]]), torch.tensor([[1, 2]])
    media = Media(make_plan(time, ordinal, True), torch.zeros(1, 2, 3, 4), observe=print)
    leaves, spec = tree_flatten(((), {"media": media}))
    assert any(leaf is media.latents for leaf in leaves)
    again = tree_unflatten(leaves, spec)[1]["media"]
    assert again == media
    moved = tree_map(lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf, media)
    assert moved.latents.is_meta and moved.plan.visible.is_meta and moved.plan.kind == media.plan.kind


def train(model: NeuroFlamingo, batch: dict[str, Tensor], labels: int) -> list[float]:
    """Losses of a few steps; each is the sum over this process's labels, divided by all labels."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, eps=1e-3)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(**batch, labels=batch["input_ids"], loss_only=True, num_items_in_batch=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def prepared(family: str, checkpointing: bool, text: bool) -> tuple[NeuroFlamingo, dict[str, Tensor], int]:
    model, processor = tiny_model(family)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    batch = tiny_batch(processor, padding_side="right")
    if text:
        batch["input_ids"][1], batch["scan_mask"][1] = torch.arange(1, 10), False
    return model, batch, int((batch["input_ids"][:, 1:] != -100).sum())


def worker(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=WORLD)
    for family, checkpointing, text in CASES:
        model, batch, labels = prepared(family, checkpointing, text)
        shard(model)
        mine = {name: value[rank : rank + 1] for name, value in batch.items()}
        if text and rank == 1 and family == "opt":
            mine = {name: mine[name] for name in ("input_ids", "attention_mask")}
        losses: Any = torch.tensor(train(model, mine, labels // WORLD)) / WORLD  # FSDP takes the mean over processes
        distributed.all_reduce(losses)
        rows = [p.full_tensor().detach().clone() for p in model.new_tokens.parameters()]
        state = {name: getattr(value, "full_tensor", lambda v=value: v)() for name, value in model.state_dict().items()}
        with torch.no_grad():
            ahead = model(**mine, use_cache=False).logits.clone()
        model.load_state_dict(model.state_dict())
        assert all(torch.equal(a.full_tensor(), b) for a, b in zip(model.new_tokens.parameters(), rows, strict=True))
        with torch.no_grad():
            assert torch.equal(model(**mine, use_cache=False).logits, ahead)
        written = None
        if not text:  # every process has scans
            written = model.generate(**mine, max_new_tokens=3, do_sample=False, synced_gpus=True)
        if rank == 0:
            kept = {"losses": losses, "state": state, "rows": rows, "written": written}
            torch.save(kept, Path(folder) / f"{family}.pt")
        distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(worker, (port, str(folder)), nprocs=WORLD)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("family", "checkpointing", "text"), CASES)
def test_two_processes_learn_what_one_learns(sharded, family, checkpointing, text):
    model, batch, labels = prepared(family, checkpointing, text)
    losses = train(model, batch, labels)
    theirs = torch.load(sharded / f"{family}.pt", weights_only=True)
    torch.testing.assert_close(theirs["losses"], torch.tensor(losses), atol=1e-5, rtol=1e-5)
    assert losses[-1] < losses[0]
    state = model.state_dict()
    assert state.keys() == theirs["state"].keys()
    for name, value in state.items():
        torch.testing.assert_close(theirs["state"][name], value, atol=2e-5, rtol=1e-4, msg=name)
    for one, two in zip(model.new_tokens.parameters(), theirs["rows"], strict=True):
        torch.testing.assert_close(one, two, atol=2e-5, rtol=1e-4)
        assert torch.equal(two, theirs["state"][_name(model, one)][model.new_tokens.ids])
    if theirs["written"] is not None:
        first = {name: value[:1] for name, value in batch.items()}
        assert torch.equal(model.generate(**first, max_new_tokens=3, do_sample=False), theirs["written"])


def _name(model: NeuroFlamingo, rows: Tensor) -> str:
    """The name of the table that these rows belong to."""
    head = rows is model.new_tokens.output
    table = model.lang_encoder.get_output_embeddings() if head else model.lang_encoder.get_input_embeddings()
    return next(name for name, parameter in model.named_parameters() if parameter is table.weight)
