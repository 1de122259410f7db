"""Nothing of a scan stays on the model: threads, exceptions, gradient checkpointing."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint
from transformers import StoppingCriteria, StoppingCriteriaList

from neuroflamingo.model import fusion
from neuroflamingo.model.gated_attention import GatedCrossAttentionBlock
from neuroflamingo.model.media import current_media
from tests.tiny import tiny_batch, tiny_model

KINDS = pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "bloom"])


class InStep(StoppingCriteria):
    """Makes two generations take turns token by token, so that a shared state would be seen."""

    def __init__(self, barrier: threading.Barrier) -> None:
        self.barrier = barrier

    def __call__(self, input_ids, scores, **kwargs):
        self.barrier.wait(timeout=600)
        return torch.zeros(len(input_ids), dtype=torch.bool)


@KINDS
def test_two_threads_on_one_model_give_what_each_gives_alone(family):
    model, processor = tiny_model(family)
    batches = [tiny_batch(processor, seed=seed) for seed in (0, 1)]
    barrier = threading.Barrier(2)

    def write(batch: dict[str, Tensor], **how) -> Tensor:
        how |= {"max_new_tokens": 8, "output_logits": True, "return_dict_in_generate": True}
        return torch.stack(model.generate(**batch, **how).logits)

    def in_step(batch: dict[str, Tensor]) -> Tensor:
        return write(batch, stopping_criteria=StoppingCriteriaList([InStep(barrier)]))

    alone = [write(batch) for batch in batches]
    assert not torch.allclose(*alone)

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(in_step, batches))
    for one, two in zip(alone, together, strict=True):
        assert torch.equal(one, two)


@KINDS
def test_an_exception_mid_generation_leaves_nothing_behind(family):
    model, processor = tiny_model(family)
    batch = tiny_batch(processor)
    expected = model.generate(**batch, max_new_tokens=6)
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    steps = []

    def fail(module: nn.Module, arguments: tuple) -> None:
        steps.append(1)
        if len(steps) == 3:
            raise KeyError("in the third step")

    handle = list(model.gated_blocks.values())[-1].register_forward_pre_hook(fail)
    with pytest.raises(KeyError):
        model.generate(**tiny_batch(processor, seed=1), max_new_tokens=6)
    handle.remove()
    assert current_media() is None
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert torch.equal(model.generate(**batch, max_new_tokens=6), expected)


def gradients(model, batch) -> dict[str, Tensor]:
    model.zero_grad()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("whole", [False, True], ids=["frozen language model", "everything trains"])
@KINDS
def test_gradient_checkpointing_gives_the_same_gradients(family, whole, reentrant):
    model, processor = tiny_model(family)
    batch = tiny_batch(processor, padding_side="right")
    if whole:
        model.requires_grad_(True)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    expected = gradients(model, batch)
    calls = []
    forward = GatedCrossAttentionBlock.forward
    block = next(iter(model.gated_blocks.values()))
    block.forward = lambda *a, **k: calls.append(1) or forward(block, *a, **k)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.train()
    seen = gradients(model, batch)
    assert len(calls) == 2  # forward and recomputation
    assert seen.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(seen[name], value, atol=1e-6, rtol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("whole", [False, True], ids=["frozen language model", "everything trains"])
@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_what_checkpoints_keep_may_wait_in_the_memory_of_the_cpu(family, whole, monkeypatch):
    model, processor = tiny_model(family)
    batch = tiny_batch(processor, padding_side="right")
    if whole:
        model.requires_grad_(True)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    expected = gradients(model, batch)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.checkpoint_offload = True
    assert model.checkpoint_offload and not tiny_model(family)[0].checkpoint_offload
    kept = []

    class Counted(save_on_cpu):
        def __init__(self, **how):
            super().__init__(**how)
            pack = self.pack_hook
            self.pack_hook = lambda tensor: kept.append(tuple(tensor.shape)) or pack(tensor)

    monkeypatch.setattr(fusion, "save_on_cpu", Counted)
    seen = gradients(model.train(), batch)
    hidden, latents = (2, 9, 32), (2, 2, 5, 16)
    assert kept.count(hidden) == 6 and kept.count(latents) == 3  # three layers, three blocks; nothing from inside them
    assert {shape for shape in kept if len(shape) > 1 and shape not in (hidden, latents)} <= {(2, 1, 9, 9)}
    for name, value in expected.items():
        torch.testing.assert_close(seen[name], value, atol=1e-6, rtol=1e-5, msg=name)


@KINDS
def test_recomputation_in_another_thread_sees_the_scans_of_its_own_forward_pass(family):
    model, processor = tiny_model(family)
    model.train()
    batch, other = (tiny_batch(processor, seed=seed, padding_side="right") for seed in (0, 1))
    expected = gradients(model, batch)
    model.gradient_checkpointing_enable()
    model.zero_grad()
    loss = model(**batch, labels=batch["input_ids"]).loss
    model(**other, labels=other["input_ids"])  # a later pass with other scans
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-5)


def test_a_checkpoint_from_outside_around_the_whole_model():
    model, processor = tiny_model("llama")
    batch = tiny_batch(processor, padding_side="right")
    model.train()
    expected = gradients(model, batch)
    model.zero_grad()
    checkpoint(lambda: model(**batch, labels=batch["input_ids"]).loss, use_reentrant=False).backward()
    for name, value in expected.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].grad, value, atol=1e-6, rtol=1e-5)
