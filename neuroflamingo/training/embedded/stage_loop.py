"""The optimisation loop that all stages share: schedule, clipping, precision, checkpoints, validation, progress."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from neuroflamingo.training.embedded.stage_settings import LoopSettings
from neuroflamingo.training.precision import autocast
from neuroflamingo.training.run_progress import StageProgress
from neuroflamingo_preprocessing.errors import ModelError, NeuroFlamingoError, NotFoundError
from neuroflamingo_preprocessing.files import write_text_atomic


class Average:
    """Moving average of a module's parameters; its buffers are copied."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in module.state_dict().items()}

    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            if value.is_floating_point() and "running" not in name:
                self.values[name].lerp_(value.detach(), 1 - decay)
            else:
                self.values[name].copy_(value)


def run_stage(
    name: str,
    folder: Path,
    module: nn.Module,
    settings: LoopSettings,
    loss_of: Callable[[int], tuple[Tensor, dict[str, float]]],
    validate: Callable[[nn.Module], dict[str, float]],
    choose_by: str,
    average: float = 0.0,
    decay_of: Callable[[str], bool] = lambda name: True,
    quiet: bool = False,
) -> dict[str, float]:
    """Optimise the trainable parameters of `module` and leave it with the best weights seen.

    Args:
        folder: `state.safetensors` (latest, to resume), `best.safetensors`, `log.jsonl` and `done.json` live here.
        loss_of: draws the batch of a step (a pure function of the step, so that resuming is exact) and gives the
            loss and what to log.
        validate: figures of a module; the weights with the highest `choose_by` are kept.
        average: decay of a moving average that is validated and kept instead of the raw weights.
        decay_of: which parameter names get weight decay (matrices only in any case).

    Returns:
        the figures of the weights kept.

    Raises:
        NeuroFlamingoError: the loss is not finite; the last good state stays on disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    best_path, state_path, done_path = (folder / n for n in ("best.safetensors", "state.safetensors", "done.json"))
    if finished(folder):
        module.load_state_dict(load_file(best_path))
        return json.loads(done_path.read_text())
    if settings.start and not state_path.exists():
        _start_from(settings.start, module)
    optimizer = _optimizer(module, settings, decay_of)
    ema = Average(module, average) if average else None
    start, best = _resume(state_path, module, optimizer, ema)
    with StageProgress(name, settings.steps, start, quiet) as progress, (folder / "log.jsonl").open("a") as log:
        for step in range(start, settings.steps):
            began = time.perf_counter()
            figures = _step(step, module, optimizer, settings, loss_of)
            if ema:
                ema.update(module, step)
            figures["seconds"] = time.perf_counter() - began
            progress.update(step + 1, figures)
            last = step + 1 == settings.steps
            if (step + 1) % settings.validate_every == 0 or last:
                scored = _validated(module, ema, validate)
                figures |= scored
                best = _keep_best(best_path, module, ema, scored, choose_by, step + 1, best)
                progress.note(step + 1, scored)
            log.write(json.dumps({"step": step + 1} | figures) + "\n")
            if (step + 1) % settings.save_every == 0 or last:
                log.flush()
                _save_state(state_path, module, optimizer, ema, step + 1, best)
    module.load_state_dict(load_file(best_path))
    write_text_atomic(done_path, json.dumps(best), overwrite=True)
    state_path.unlink()
    return best


def _start_from(path: str, module: nn.Module) -> None:
    """Load the weights of another run, strictly."""
    if not Path(path).is_file():
        raise NotFoundError(
            f"there are no weights to start from at {path}",
            expected="best.safetensors of the same stage of another run",
            hint="correct `start` in the recipe, or leave it out",
        )
    try:
        module.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"the weights to start from at {path} do not fit this stage",
            expected="best.safetensors of the same stage of another run",
            seen=" ".join(str(error).split())[:300],
            exit_code=65,
        ) from error


def finished(folder: Path) -> bool:
    """Whether the stage in this folder has ended."""
    return (folder / "done.json").exists()


def _keep_best(
    path: Path,
    module: nn.Module,
    ema: Average | None,
    scored: dict[str, float],
    choose_by: str,
    step: int,
    best: dict[str, float],
) -> dict[str, float]:
    """Write the weights if they are the best so far (ties go to the later ones); gives the figures of the best."""
    if best and scored[choose_by] < best[choose_by]:
        return best
    _save(path, ema.values if ema else module.state_dict())
    return scored | {"step": float(step)}


def _optimizer(module: nn.Module, settings: LoopSettings, decay_of: Callable[[str], bool]) -> torch.optim.AdamW:
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    decayed = [p for n, p in named if p.ndim > 1 and decay_of(n)]
    plain = [p for n, p in named if not (p.ndim > 1 and decay_of(n))]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.learning_rate, betas=(0.9, 0.98))


def _step(step: int, module: nn.Module, optimizer: Any, settings: LoopSettings, loss_of: Any) -> dict[str, float]:
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * _schedule(step, settings)
    module.train()
    with autocast(next(module.parameters()).device, settings.precision):
        loss, figures = loss_of(step)
    if not torch.isfinite(loss):
        raise NeuroFlamingoError(
            f"the loss of step {step} is not finite", seen=str(loss.item()), hint="lower the learning rate and resume"
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    trainable = [p for g in optimizer.param_groups for p in g["params"]]
    norm = nn.utils.clip_grad_norm_(trainable, settings.clip_norm)
    optimizer.step()
    return {"loss": float(loss.detach()), "norm": float(norm), **figures}


def _schedule(step: int, settings: LoopSettings) -> float:
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    share = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.5 * (1 + math.cos(math.pi * share))


def _validated(module: nn.Module, ema: Average | None, validate: Any) -> dict[str, float]:
    raw = {n: v.detach().clone() for n, v in module.state_dict().items()} if ema else None
    if ema:
        module.load_state_dict(ema.values)
    module.eval()
    with torch.no_grad():
        scored = validate(module)
    if raw:
        module.load_state_dict(raw)
    return scored


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    temporary = path.with_suffix(".part")
    save_file({n: v.contiguous().clone() for n, v in tensors.items()}, temporary, metadata)
    temporary.replace(path)


def _save_state(path: Path, module: nn.Module, optimizer: Any, ema: Average | None, step: int, best: dict) -> None:
    tensors = {f"module.{n}": v for n, v in module.state_dict().items()}
    tensors |= {f"average.{n}": v for n, v in ema.values.items()} if ema else {}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    _save(path, tensors, {"step": str(step), "best": json.dumps(best)})


def _resume(path: Path, module: nn.Module, optimizer: Any, ema: Average | None) -> tuple[int, dict[str, float]]:
    if not path.exists():
        return 0, {}
    from safetensors import safe_open

    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    module.load_state_dict(_under(tensors, "module."))
    if ema:
        ema.values = _under(tensors, "average.")
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _under(tensors, "optimizer.").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(metadata["step"]), json.loads(metadata["best"])


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
