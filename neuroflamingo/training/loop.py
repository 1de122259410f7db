"""The loop of a research training: micro-steps, one clipped optimiser step for all of them, validation, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from neuroflamingo.data.labels import IGNORED
from neuroflamingo.provenance import peak_memory_mb
from neuroflamingo.recipe.schema import KINDS, Recipe
from neuroflamingo.training import checkpoints
from neuroflamingo.training.checkpoints import BEST, Checkpoint, Progress
from neuroflamingo.training.ema import MovingAverage, OptimizerState
from neuroflamingo.training.parallel import inputs_of, part_of, put_back, summed, trained, whole, without_sync
from neuroflamingo.training.run_logging import Telling
from neuroflamingo.training.schedule import rate
from neuroflamingo.training.signals import StopRequest
from neuroflamingo_preprocessing.errors import NeuroFlamingoError, is_out_of_memory

if TYPE_CHECKING:
    from accelerate import Accelerator

    from neuroflamingo.data.batches import TrainingBatches
    from neuroflamingo.model.neuroflamingo import NeuroFlamingo
    from neuroflamingo.model.processor import NeuroFlamingoProcessor
    from neuroflamingo.training.validation import Validation


@dataclass
class Loop:
    """One training, from wherever it stands to its end.

    Attributes:
        recipe: see `Recipe`.
        model: on its device, sharded if it is to be.
        processor: its tokenizer and preprocessing.
        runner: what is called in training: the model, or DDP around it.
        optimizer: over what trains.
        accelerator: devices, precision, other processes.
        batches: gives the samples of any micro-step.
        validation: gives the figures of the model; None: there are no held-out samples.
        folder: of the run.
        quiet: no progress on standard error.
    """

    recipe: Recipe
    model: NeuroFlamingo
    processor: NeuroFlamingoProcessor
    runner: nn.Module
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    batches: TrainingBatches
    validation: Validation | None
    folder: Path
    quiet: bool = False

    def __post_init__(self) -> None:
        self.progress = Progress()
        self.average = MovingAverage(self.model, self.recipe.optim.ema) if self.recipe.optim.ema else None
        self.moments = OptimizerState(self.model, self.optimizer)
        self.said = self.recipe.model_dump(mode="json")

    @property
    def root(self) -> Path:
        """Where checkpoints are."""
        return self.folder / "checkpoints"

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint, at the very micro-step."""
        self.progress = checkpoint.progress
        parameters = dict(trained(self.model))
        put_back(parameters, checkpoint.weights)
        self.moments.restore(checkpoint.optimizer)
        if self.average:
            self.average.restore(checkpoint.average)
        for name, value in checkpoint.gradients.items():
            parameters[name].grad = part_of(value, parameters[name])
        if self.accelerator.scaler is not None and checkpoint.progress.scale:
            self.accelerator.scaler.load_state_dict(checkpoint.progress.scale)

    def run(self) -> None:
        """Train to the last step, or until patience ends.

        Raises:
            NeuroFlamingoError: a loss or gradient that is not finite (the state before it is saved); a signal or too
                little memory (exit 75, saved where it can go on).
        """
        optim = self.recipe.optim
        first = self.progress.step * optim.accumulate
        telling = Telling(self.folder, self.recipe, self.accelerator, self.progress.step, self.quiet)
        with StopRequest() as self.stop, telling:
            batches = iter(
                self.batches.loader(
                    first, self.accelerator.process_index, self.accelerator.num_processes, self.recipe.data.workers
                )
            )
            while self.progress.step < optim.steps and not self._enough():
                figures = self._step(batches)
                found = self._validate() if self._validates() else {}
                telling.step(self.progress.step, figures, found)
                ended = self.progress.step == optim.steps or self._enough()
                if ended or self.progress.step % self.recipe.checkpoint.every == 0:
                    self.save()

    def _enough(self) -> bool:
        patience = self.recipe.validation.patience
        return patience is not None and self.progress.worse >= patience

    def _validates(self) -> bool:
        step = self.progress.step
        last = step == self.recipe.optim.steps
        return self.validation is not None and (last or step % self.recipe.validation.every == 0)

    def _step(self, batches: Iterator[dict[str, Any]]) -> dict[str, float]:
        """One optimiser step; gives what to log."""
        began, optim = time.perf_counter(), self.recipe.optim
        fetched = [next(batches) for _ in range(optim.accumulate)]
        waited = time.perf_counter() - began
        counts, samples, scans = self._counts(fetched)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.progress.step, optim)
        if self.progress.micro == 0:
            self.optimizer.zero_grad(set_to_none=True)
        for number in range(self.progress.micro, optim.accumulate):
            self._micro_step(number, fetched[number], counts)
        norm = self._clip(fetched)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.step(self.optimizer)
            self.accelerator.scaler.update()
        else:
            self.optimizer.step()
        if self.average:
            self.average.update(self.progress.step)
        took = time.perf_counter() - began
        done, tokens = self.progress, sum(counts)
        self.progress = replace(
            done,
            step=done.step + 1,
            micro=0,
            loss=0.0,
            samples=done.samples + int(samples),
            tokens=done.tokens + int(tokens),
        )
        return {
            "loss": done.loss,
            "norm": norm,
            "lr": self.optimizer.param_groups[0]["lr"],
            "seconds": took,
            "tokens_per_s": tokens / took,
            "scans_per_s": scans / took,
            "data_wait": waited / took,
            "memory_mb": memory_mb(self.accelerator.device),
        }

    def _counts(self, fetched: list[dict[str, Any]]) -> tuple[list[float], float, float]:
        """Learnt tokens of each kind, samples and scans of this optimiser step, over all processes."""
        local = [0.0] * (len(KINDS) + 2)
        for batch in fetched:
            learnt = batch["kinds"][:, 1:][batch["labels"][:, 1:] != IGNORED]
            for index, tokens in enumerate(torch.bincount(learnt, minlength=len(KINDS)).tolist()):
                local[index] += tokens
            local[-2] += len(batch["ids"])
            local[-1] += float(batch["scan_mask"].sum()) if "scan_mask" in batch else 0.0
        *counts, samples, scans = summed(self.accelerator, *local)
        return counts, samples, scans

    def _micro_step(self, number: int, batch: dict[str, Any], counts: list[float]) -> None:
        """Forward and backward of one micro-batch, which adds to the step's loss and gradients."""
        self._stop_here(number)
        world = self.accelerator.num_processes
        last = number + 1 == self.recipe.optim.accumulate
        self._seed(number)
        self.runner.train()
        try:
            with nullcontext() if last else without_sync(self.runner):
                with self.accelerator.autocast():
                    loss = self.runner(**self._inputs(batch, number, counts)).loss
                (value,) = summed(self.accelerator, float(loss.detach()))
                if not np.isfinite(value):
                    raise self._not_finite("loss", value, batch["ids"])
                scaled = loss * world  # gradients are averaged over processes, and the loss is a sum over them
                if self.accelerator.scaler is not None:
                    scaled = self.accelerator.scaler.scale(scaled)
                scaled.backward()
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise self._too_large(error) from error
            raise
        self.progress = replace(self.progress, micro=number + 1, loss=self.progress.loss + value)

    def _inputs(self, batch: dict[str, Any], number: int, counts: list[float]) -> dict[str, Any]:
        """The model's arguments; the loss is divided by the step's learnt tokens, or each kind's by its own."""
        inputs = inputs_of(batch, self.accelerator.device)
        total = sum(counts)
        if self.recipe.data.reduction == "kinds":
            each = 1.0 / torch.tensor([*counts, 1.0]).clamp(min=1.0)  # the last one is for padding, number -1
            inputs["label_weights"] = inputs["label_weights"] * each[batch["kinds"]].to(inputs["label_weights"])
            total = 1.0
        inputs["num_items_in_batch"] = total
        if self.recipe.optim.label_smoothing:
            inputs["label_smoothing"] = self.recipe.optim.label_smoothing
        if self.recipe.media_placement == "coin":
            rng = np.random.default_rng([self.recipe.seed, 11, self._micro_number(number)])
            inputs["media_shift"] = "previous" if rng.random() < 0.5 else "next"
        return inputs

    def _micro_number(self, number: int) -> int:
        return self.progress.step * self.recipe.optim.accumulate + number

    def _seed(self, number: int) -> None:
        """Dropout and the like depend on the micro-step and the process only: nothing of it has to be saved."""
        key = [self.recipe.seed, 13, self._micro_number(number), self.accelerator.process_index]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))

    def _clip(self, fetched: list[dict[str, Any]]) -> float:
        """Clip the global norm once, when all micro-steps have added to the gradients."""
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.unscale_(self.optimizer)
        parameters = [p for _, p in trained(self.model)]
        for p in parameters:  # a step without any scan is the same on one process as on several
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        limit = self.recipe.optim.clip_norm or float("inf")
        norm = float(whole(nn.utils.clip_grad_norm_(parameters, limit)))
        if not np.isfinite(norm) and self.accelerator.scaler is None:  # the scaler leaves such a step out by itself
            raise self._not_finite("gradient norm", norm, [name for batch in fetched for name in batch["ids"]])
        return norm

    def _validate(self) -> dict[str, float]:
        """Figures of the model (of its moving average, if there is one); the best weights are kept."""
        assert self.validation is not None
        raw = self.average.swap_in() if self.average else None
        figures = self.validation.figures(self.runner)
        if self.validation.better(figures, self.progress.best):
            best = figures | {"step": float(self.progress.step)}
            self.progress = replace(self.progress, best=best, worse=0)
            self._write(Checkpoint(self.progress, self._weights()), BEST)
        else:
            self.progress = replace(self.progress, worse=self.progress.worse + 1)
        if raw is not None and self.average:
            self.average.swap_out(raw)
        return figures

    def save(self) -> None:
        """Write a checkpoint of the very state; all processes must call it at once."""
        gradients = self._gradients() if self.progress.micro else {}
        scaler = self.accelerator.scaler
        progress = replace(self.progress, scale=scaler.state_dict() if scaler is not None else {})
        average = self.average.saved() if self.average else {}
        self._write(Checkpoint(progress, self._weights(), self.moments.saved(), average, gradients))

    def _write(self, checkpoint: Checkpoint, name: str | None = None) -> None:
        if self.accelerator.is_main_process:
            checkpoints.save(self.root, checkpoint, self.said, keep=self.recipe.checkpoint.keep, name=name)
        self.accelerator.wait_for_everyone()

    def _weights(self) -> dict[str, Tensor]:
        return {name: whole(p) for name, p in trained(self.model)}

    def _gradients(self) -> dict[str, Tensor]:
        """What the micro-steps so far have summed up, as the mean over processes that synchronising would give."""
        gradients = {}
        for name, p in trained(self.model):
            gradient = torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
            if self.accelerator.num_processes > 1 and self.runner is not self.model:
                torch.distributed.all_reduce(gradient)
                gradient /= self.accelerator.num_processes
            gradients[name] = whole(gradient)
        return gradients

    def _stop_here(self, number: int) -> None:
        """Save and stop, if a signal came to any process."""
        asked = self.stop.name is not None
        if self.accelerator.num_processes > 1:
            asked = summed(self.accelerator, float(asked))[0] > 0
        if asked:
            self.progress = replace(self.progress, micro=number)
            self.save()
            raise NeuroFlamingoError(
                f"{self.stop.name or 'a signal'} ended the training; it is saved at step {self.progress.step}"
                + (f", micro-step {number}" if number else ""),
                hint="run the same command again: it goes on from there",
                exit_code=75,
            )

    def _not_finite(self, what: str, value: float, ids: list[str]) -> NeuroFlamingoError:
        """Keep the last good state and say whose samples these are."""
        self.progress = replace(self.progress, micro=0, loss=0.0)
        self.save()
        where = self.root / checkpoints.folder_name(self.progress)
        return NeuroFlamingoError(
            f"the {what} of step {self.progress.step + 1} is not finite; the state before it is saved",
            expected="a finite number",
            seen=f"{value} on the samples {', '.join(ids[:8])}" + (" ..." if len(ids) > 8 else ""),
            hint=f"look at these samples; then go on with other settings: --resume {where} --set optim.lr=...",
            exit_code=65,
        )

    def _too_large(self, error: BaseException) -> NeuroFlamingoError:
        optim = self.recipe.optim
        return NeuroFlamingoError(
            f"out of memory in step {self.progress.step + 1}; the last checkpoint stays",
            seen=" ".join(str(error).split())[:200],
            hint=(
                f"--set optim.batch={max(1, optim.batch // 2)} --set optim.accumulate={optim.accumulate * 2} (the same "
                "step in smaller parts), --set run.gradient_checkpointing=on, or a smaller data.max_tokens (now "
                f"{self.recipe.data.max_tokens})"
            ),
            exit_code=75,
        )


def memory_mb(device: torch.device) -> float:
    """Peak memory of this process: on its GPU, or resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_memory_mb()
