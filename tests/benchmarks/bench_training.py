"""Training beside transformers' Idefics, beside encoding anew in every epoch, and beside logits everywhere.

Interleaved in one run; what both sides compute is compared first where it should be equal. Run by `make bench`, or:

    python tests/benchmarks/bench_training.py --rounds 15 --write docs/performance.md
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import bench_generation as bench
import torch
import training_data
from comparing import OURS, Comparison
from preparing_data import begin_with, folder
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_data import BATCH, of_scans, of_tokens, sizes

Work = Callable[[], Any]
PEER, AGAIN, EVERYWHERE = "idefics", "encoding again", "logits everywhere"
SIZE = sizes()
SHAPE = bench.Case("training step, 2 scans, text 256", "train", 2, 256, 1.25)
ON_GPU = bench.Case("GPU, bf16: training step, 8 scans, text 1024", "train", 8, 1024, 1.5)
ALONE = f"tokens of {SIZE.scans} scans, 3D ViT-B, without training"
SMALL, LARGE = f"epoch of {SIZE.scans} scans, tiny-t1w's sizes", f"epoch of {SIZE.scans} scans, benchmark's sizes"
LOGITS = f"step, vocabulary {SIZE.vocabulary:,}, half of the labels ignored"
LOGITS_ALONE, WAITING = "logits of that step, their memory", f"data wait at batch {BATCH}, share of the step"
GOALS = {SHAPE.name: SHAPE.goal, SMALL: 10.0, LARGE: 10.0}
GPU_MEMORY, LESS_LOGITS, WAIT = 0.7, 2.0, 0.05


def agree(first: Any, other: Any) -> None:
    if first is not None:
        torch.testing.assert_close(first, other, atol=1e-3, rtol=1e-3)


# --- one step ----------------------------------------------------------------------------------------------------


def stepping(loss: Callable[[], Tensor], parameters: list[nn.Parameter]) -> Callable[[], Tensor]:
    """Forward, backward, clip, AdamW; gives the loss."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return value.detach()

    return step


def step_of(name: str, case: bench.Case = SHAPE, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Work:
    """A step of one of the systems of `bench_generation`; the losses of two random models are not compared."""
    system, inputs = bench.SYSTEMS[name](device, dtype), bench.Inputs.of(case, device, dtype)
    step = stepping(partial(system.loss, inputs), bench.trained_parameters(system.model))

    def work() -> None:
        step()

    return work


# --- an epoch ----------------------------------------------------------------------------------------------------


def loop_of(language_model: str, source: str) -> Any:
    """The real training loop over prepared scans or over their tokens."""
    from neuroflamingo.training.parallel import accelerate_for
    from neuroflamingo.training.run import prepare_loop
    from neuroflamingo.training.signals import StopRequest

    recipe = of_scans(language_model, source)
    loop: Any = prepare_loop(recipe, folder() / "run", accelerate_for(recipe), quiet=True)
    loop.stop = StopRequest()
    return loop


def epoch_of(language_model: str, source: str) -> Work:
    """All steps of an epoch by the training loop; gives their losses."""
    loop = loop_of(language_model, source)

    def epoch() -> Tensor:
        batches = loop.task.batches.loader(0)
        return torch.tensor([loop._step(batches)["loss"] for _ in range(SIZE.scans // BATCH)])

    return epoch


def tokens_of(source: str) -> Work:
    """The tokens of an epoch's batches: read, or computed of prepared scans."""
    loop = loop_of("small", source)

    @torch.no_grad()
    def read() -> list[Tensor]:
        batches = islice(loop.task.batches.loader(0), SIZE.scans // BATCH)
        if source == "tokens":
            return [batch["scan_tokens"].flatten() for batch in batches]
        return [loop.model.encoder(batch["scans"]).tokens.flatten() for batch in batches]

    return read


# --- logits ------------------------------------------------------------------------------------------------------


def wide_step(loss_only: bool) -> tuple[Any, Callable[[], Tensor]]:
    """A step of the benchmark's model with a large vocabulary; the first half of each row is not learnt."""
    from neuroflamingo.model.neuroflamingo import NeuroFlamingo
    from neuroflamingo.model.resampler import PerceiverResampler

    torch.manual_seed(0)
    words = SIZE.vocabulary
    model, processor = NeuroFlamingo.assemble(
        None,
        bench.language_model("opt", words),
        bench.tokenizer_of(words),
        resampler=PerceiverResampler(dim=bench.WIDTH),
    )
    inputs = bench.Inputs.of(SHAPE, "cpu", torch.float32)
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    ids = torch.where(inputs.ids == bench.IMAGE_ID, image, inputs.ids)
    labels = ids.clone()
    labels[:, : ids.shape[1] // 2] = -100
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "scan_tokens": inputs.tokens, "labels": labels}
    step = stepping(lambda: model(**given, loss_only=loss_only).loss, bench.trained_parameters(model))
    return model, step


class AsWide(TorchDispatchMode):
    """The most bytes that live at once in tensors whose last axis is this long: logits, and what becomes of them.

    Args:
        width: of the last axis.
        known: weights, which do not count.
    """

    def __init__(self, width: int, known: list[Tensor]) -> None:
        super().__init__()
        self.width, self.now, self.peak = width, 0, 0
        self.seen = {tensor.untyped_storage().data_ptr() for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.ndim > 1 and tensor.shape[-1] == self.width:
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        place, size = storage.data_ptr(), storage.nbytes()
        if place not in self.seen:
            self.seen.add(place)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, place, size)

    def _gone(self, place: int, size: int) -> None:
        self.seen.discard(place)
        self.now -= size


def logits_mb(loss_only: bool) -> float:
    """Peak memory of the logits and of their gradients in one step."""
    model, step = wide_step(loss_only)
    mode = AsWide(model.lang_encoder.get_input_embeddings().num_embeddings, list(model.parameters()))
    with mode:
        step()
    return mode.peak / 2**20


def logit_rows() -> Iterator[dict[str, Any]]:
    """The memory of the logits alone."""
    ours = logits_mb(True)
    for name, taken in ((OURS, ours), (EVERYWHERE, logits_mb(False))):
        goal = "" if name == OURS else f">= {LESS_LOGITS} (memory)"
        more = {"shown": "-", "memory_mb": taken, "ratio": taken / ours, "goal": goal}
        yield {"case": LOGITS_ALONE, "system": name} | more


# --- waiting for data, a GPU -------------------------------------------------------------------------------------


def wait_rows() -> Iterator[dict[str, Any]]:
    """How much of a step a real run waits for its batches, as its log says; the first steps start the workers."""
    from neuroflamingo.training.run import train

    for workers in (0, 2):
        run = folder() / f"wait-{workers}"
        train(of_tokens(workers), folder=run, quiet=True)
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()][2:]
        waited = sum(line["data_wait"] * line["seconds"] for line in lines) / sum(line["seconds"] for line in lines)
        yield {
            "case": WAITING,
            "system": f"{OURS}, {workers} workers",
            "shown": f"{100 * waited:.2f} %",
            "memory_mb": None,
            "ratio": None,
            "goal": f"<= {100 * WAIT:.0f} %",
        }


def gpu_memory_mb(name: str) -> float:
    """Peak memory of one step on the GPU above the model's own; after a first one, which makes the moments."""
    work = step_of(name, ON_GPU, "cuda", torch.bfloat16)
    work()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def gpu_rows(rounds: int = 20) -> Iterator[dict[str, Any]]:
    """The step on a GPU, or a row that says that there is none."""
    empty = {"case": ON_GPU.name, "memory_mb": None, "ratio": None}
    if not torch.cuda.is_available():
        yield empty | {"system": OURS, "shown": "no GPU", "goal": f">= {ON_GPU.goal}, memory <= {GPU_MEMORY}"}
        return
    jobs = {name: step_of(name, ON_GPU, "cuda", torch.bfloat16) for name in (OURS, PEER)}
    times = {name: bench.Times() for name in jobs}
    for number in range(rounds + 3):
        for name, work in jobs.items():
            times[name].add(work, "cuda")
            if number == 2:  # warm
                times[name] = bench.Times()
    ours = times[OURS].wall
    for name, measured in times.items():
        command = [sys.executable, __file__, "--memory-of", ON_GPU.name, name]
        memory = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
        ratio = statistics.median(b / a for a, b in zip(ours, measured.wall, strict=True))
        shown = {"wall_s": statistics.median(measured.wall), "memory_mb": memory, "ratio": ratio}
        goal = "" if name == OURS else f">= {ON_GPU.goal}, memory <= {GPU_MEMORY}"
        yield empty | shown | {"system": name, "goal": goal}


class Training(Comparison):
    """With a job whose memory is a GPU's."""

    def peak_memory_mb(self, case: str, system: str) -> float:
        return gpu_memory_mb(system) if case == ON_GPU.name else super().peak_memory_mb(case, system)


SYSTEMS: dict[str, dict[str, Callable[[], Work]]] = {
    SHAPE.name: {OURS: lambda: step_of(OURS), PEER: lambda: step_of(PEER)},
    ALONE: {OURS: lambda: tokens_of("tokens"), AGAIN: lambda: tokens_of("prepared")},
    SMALL: {OURS: lambda: epoch_of("small", "tokens"), AGAIN: lambda: epoch_of("small", "prepared")},
    LARGE: {OURS: lambda: epoch_of("opt", "tokens"), AGAIN: lambda: epoch_of("opt", "prepared")},
    LOGITS: {OURS: lambda: wide_step(True)[1], EVERYWHERE: lambda: wide_step(False)[1]},
}
MORE = {LOGITS_ALONE: logit_rows, WAITING: wait_rows, ON_GPU.name: gpu_rows}


if __name__ == "__main__":
    torch.set_num_threads(1)
    few = dict.fromkeys((ALONE, SMALL, LARGE, LOGITS), 5)
    sys.exit(
        Training(
            __file__,
            "bench-training",
            SYSTEMS,
            GOALS,
            agree,
            __doc__ or "",
            most_rounds=few,
            weighed=frozenset({SHAPE.name, LOGITS}),
            more=MORE,
            begin=begin_with(training_data.make),
            note=f"Load average when it began: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.",
        ).main()
    )
