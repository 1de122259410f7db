"""The training loop: micro-steps, one clipped optimiser step for them, validation, checkpoints, exact resume.

A `Task` defines model, data and loss; a `Plan` the schedule and the intervals.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neuroflamingo.provenance import peak_memory_mb
from neuroflamingo.training import checkpoints
from neuroflamingo.training.checkpoints import BEST, Checkpoint, Progress
from neuroflamingo.training.ema import MovingAverage, OptimizerState
from neuroflamingo.training.parallel import part_of, put_back, summed, trained, whole, without_sync
from neuroflamingo.training.run_logging import Telling
from neuroflamingo.training.schedule import rate
from neuroflamingo.training.signals import StopRequest
from neuroflamingo.training.task import Counts, Plan, Task
from neuroflamingo_preprocessing.errors import NeuroFlamingoError, is_out_of_memory


@dataclass
class Loop:
    """Training run, from its start or a checkpoint to its end.

    Attributes:
        task: model, data and loss; its module is on this process's device.
        plan: schedule and intervals.
        folder: folder of the run.
        quiet: no progress on standard error.
    """

    task: Task
    plan: Plan
    folder: Path
    quiet: bool = False

    def __post_init__(self) -> None:
        self.model, self.accelerator = self.task.model, self.task.accelerator
        optim = self.plan.optim
        self.optimizer = torch.optim.AdamW(
            self.task.parameter_groups(), lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True
        )
        self.progress, self.stop = Progress(), StopRequest()
        self.average = MovingAverage(self.model, optim.ema) if optim.ema else None
        self.moments = OptimizerState(self.model, self.optimizer)

    @property
    def root(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / checkpoints.CHECKPOINTS

    def restore(self, checkpoint: Checkpoint) -> None:
        """Resume from a checkpoint, at the exact micro-step."""
        self.progress = checkpoint.progress
        self._put_back(checkpoint.weights)
        self.moments.restore(checkpoint.optimizer)
        if self.average:
            self.average.restore(checkpoint.average)
        parameters = dict(trained(self.model))
        for name, value in checkpoint.gradients.items():
            parameters[name].grad = part_of(value, parameters[name])
        if self.accelerator.scaler is not None and checkpoint.progress.scale:
            self.accelerator.scaler.load_state_dict(checkpoint.progress.scale)

    def run(self) -> None:
        """Train to the last step, or until patience runs out.

        Raises:
            NeuroFlamingoError: a non-finite loss or gradient (the state before it is saved); a signal or too little
                memory (exit 75, with a checkpoint to resume from).
        """
        optim = self.plan.optim
        self.stop = StopRequest()
        logging = Telling(self.folder, self.plan, self.accelerator, self.progress.step, self.quiet)
        with self.stop, logging:
            batches = self.task.micro_batches(self.progress.step * optim.accumulate)
            while not self.ended:
                figures = self._step(batches)
                found = self._validate() if self._validates() else {}
                logging.step(self.progress.step, figures, found)
                if self.ended or self.progress.step % self.plan.checkpoint.every == 0:
                    self.save()

    def take_best(self) -> None:
        """Load the best weights: of the best validation; without one, the moving average or the last weights.

        Raises:
            ModelError: the best checkpoint is damaged.
        """
        best = self.root / BEST
        if best.exists():
            self._put_back(checkpoints.load(best).weights)
        elif self.average:
            self.average.swap_in()

    @property
    def ended(self) -> bool:
        """Whether all steps are done, or patience has run out."""
        patient = self.plan.patience is None or self.progress.worse < self.plan.patience
        return self.progress.step >= self.plan.optim.steps or not patient

    def _validates(self) -> bool:
        step = self.progress.step
        return self.task.validates and (step == self.plan.optim.steps or step % self.plan.every == 0)

    def _step(self, batches: Iterator[Any]) -> dict[str, float]:
        """Do one optimiser step and return the figures to log."""
        began, optim = time.perf_counter(), self.plan.optim
        fetched = [next(batches) for _ in range(optim.accumulate)]
        waited = time.perf_counter() - began
        counts = Counts.total(self.accelerator, [self.task.count(batch) for batch in fetched])
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.progress.step, optim)
        if self.progress.micro == 0:
            self.optimizer.zero_grad(set_to_none=True)
        for number in range(self.progress.micro, optim.accumulate):
            self._micro_step(number, fetched[number], counts)
        self.task.check_gradients(counts)
        norm = self._clip(fetched)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.step(self.optimizer)
            self.accelerator.scaler.update()
        else:
            self.optimizer.step()
        if self.average:
            self.average.update(self.progress.step)
        done, took = self.progress, time.perf_counter() - began
        self.progress = replace(
            done,
            step=done.step + 1,
            micro=0,
            loss=0.0,
            parts={},
            samples=done.samples + int(counts.samples),
            tokens=done.tokens + int(counts.tokens),
        )
        return {
            "loss": done.loss,
            **done.parts,
            "norm": norm,
            "lr": self.optimizer.param_groups[0]["lr"],
            "seconds": took,
            "tokens_per_s": counts.tokens / took,
            "scans_per_s": counts.scans / took,
            "data_wait": waited / took,
            "memory_mb": memory_mb(self.accelerator.device),
        }

    def _micro_step(self, number: int, batch: Any, counts: Counts) -> None:
        """Run forward and backward of one micro-batch, adding to the step's loss and gradients."""
        self._stop_here(number)
        world = self.accelerator.num_processes
        last = number + 1 == self.plan.optim.accumulate
        micro_step = self.progress.step * self.plan.optim.accumulate + number
        self._seed(micro_step)
        self.task.runner.train()
        try:
            with nullcontext() if last else without_sync(self.task.runner):
                with self.accelerator.autocast():
                    loss, parts = self.task.loss(batch, counts, micro_step)
                value, *others = summed(self.accelerator, float(loss.detach()), *parts.values())
                if not np.isfinite(value):
                    raise self._not_finite("loss", value, self.task.names(batch))
                scaled = loss * world  # gradients are averaged over processes, and the loss is a sum over them
                if self.accelerator.scaler is not None:
                    scaled = self.accelerator.scaler.scale(scaled)
                scaled.backward()
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise self._too_large(error) from error
            raise
        before = self.progress
        parts = {name: before.parts.get(name, 0.0) + part for name, part in zip(parts, others, strict=True)}
        self.progress = replace(before, micro=number + 1, loss=before.loss + value, parts=parts)

    def _seed(self, micro_step: int) -> None:
        """Seed dropout and the like by micro-step and process, so that no random state has to be saved."""
        key = [self.plan.seed, 13, micro_step, self.accelerator.process_index]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))

    def _clip(self, fetched: list[Any]) -> float:
        """Clip the global norm once, after all micro-steps."""
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.unscale_(self.optimizer)
        parameters = [p for _, p in trained(self.model)]
        for p in parameters:  # a step without any scan is the same on one process as on several
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        limit = self.plan.optim.clip_norm or float("inf")
        norm = float(whole(nn.utils.clip_grad_norm_(parameters, limit)))
        if not np.isfinite(norm) and self.accelerator.scaler is None:  # the scaler leaves such a step out by itself
            names = [name for batch in fetched for name in self.task.names(batch)]
            raise self._not_finite("gradient norm", norm, names)
        return norm

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Validate the model (its moving average, if there is one) and keep the best weights."""
        raw = self.average.swap_in() if self.average else None
        self.task.runner.eval()
        figures = self.task.figures()
        if self.task.better(figures, self.progress.best):
            best = figures | {"step": float(self.progress.step)}
            self.progress = replace(self.progress, best=best, worse=0)
            self._write(Checkpoint(self.progress, self._weights()), BEST)
        else:
            self.progress = replace(self.progress, worse=self.progress.worse + 1)
        if raw is not None and self.average:
            self.average.swap_out(raw)
        return figures

    def save(self) -> None:
        """Write a checkpoint of the exact state; all processes must call it together."""
        gradients = self._gradients() if self.progress.micro else {}
        scaler = self.accelerator.scaler
        progress = replace(self.progress, scale=scaler.state_dict() if scaler is not None else {})
        average = self.average.saved() if self.average else {}
        self._write(Checkpoint(progress, self._weights(), self.moments.saved(), average, gradients))

    def _write(self, checkpoint: Checkpoint, name: str | None = None) -> None:
        if self.accelerator.is_main_process:
            checkpoints.save(self.root, checkpoint, self.plan.recipe, keep=self.plan.checkpoint.keep, name=name)
        self.accelerator.wait_for_everyone()

    def _put_back(self, weights: dict[str, Tensor]) -> None:
        put_back(dict(trained(self.model)) | self.task.buffers(), weights)

    def _weights(self) -> dict[str, Tensor]:
        """Return the trainable parameters, and the buffers that training changes."""
        return {name: whole(value) for name, value in [*trained(self.model), *self.task.buffers().items()]}

    def _gradients(self) -> dict[str, Tensor]:
        """Return the accumulated gradients, averaged over processes as synchronisation would."""
        gradients = {}
        for name, p in trained(self.model):
            gradient = torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
            if isinstance(self.task.runner, nn.parallel.DistributedDataParallel):
                torch.distributed.all_reduce(gradient)
                gradient /= self.accelerator.num_processes
            gradients[name] = whole(gradient)
        return gradients

    def _stop_here(self, number: int) -> None:
        """Save and stop if any process has received a signal."""
        asked = self.stop.name is not None
        if self.accelerator.num_processes > 1:
            asked = summed(self.accelerator, float(asked))[0] > 0
        if asked:
            self.progress = replace(self.progress, micro=number)
            self.save()
            raise NeuroFlamingoError(
                f"{self.stop.name or 'a signal'} ended training; the run is saved at step {self.progress.step}"
                + (f", micro-step {number}" if number else ""),
                hint="run the same command again: it resumes from there",
                exit_code=75,
            )

    def _not_finite(self, what: str, value: float, names: list[str]) -> NeuroFlamingoError:
        """Save the last good state and name the samples in the error."""
        self.progress = replace(self.progress, micro=0, loss=0.0, parts={})
        self.save()
        where = self.root / checkpoints.folder_name(self.progress)
        on = f" on the samples {', '.join(names[:8])}" + (" ..." if len(names) > 8 else "") if names else ""
        return NeuroFlamingoError(
            f"the {what} of step {self.progress.step + 1} is not finite; the state before it is saved",
            expected="a finite number",
            seen=f"{value}{on}",
            hint=self.plan.other_settings(where),
            exit_code=65,
        )

    def _too_large(self, error: BaseException) -> NeuroFlamingoError:
        optim, section = self.plan.optim, self.plan.section
        smaller = (
            f"--set {section}optim.batch={max(1, optim.batch // 2)} "
            f"--set {section}optim.accumulate={optim.accumulate * 2} (the same step in smaller parts)"
        )
        return NeuroFlamingoError(
            f"out of memory in step {self.progress.step + 1}; the last checkpoint is kept",
            seen=" ".join(str(error).split())[:200],
            hint=", ".join([smaller, *self.task.smaller()]),
            exit_code=75,
        )


def memory_mb(device: torch.device) -> float:
    """Measure the peak memory of this process: on its GPU, or resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_memory_mb()
