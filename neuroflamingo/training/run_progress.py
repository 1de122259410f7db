"""Progress display of training: steps, smoothed loss, time left, validation figures."""

from __future__ import annotations

from neuroflamingo.progress import Progress

NOT_USED = "reliance is exactly 0: the model writes the same whatever scan it is shown, so the scans are not used"


class StageProgress(Progress):
    """Progress of one stage.

    Args:
        name: name of the stage.
        steps: number of steps.
        quiet: show nothing at all.
        unit: word for a step.
    """

    def __init__(self, name: str, steps: int, *, quiet: bool = False, unit: str = "step") -> None:
        super().__init__(name, quiet=quiet)
        self.steps, self.unit = steps, unit
        self.loss: float | None = None
        self.losses = 0

    def update(self, step: int, figures: dict[str, float], more: str | None = None) -> None:
        """Show the number of steps done and the figures; the loss, if present, is smoothed.

        Args:
            step: steps done.
            figures: of this step.
            more: figures to show beside the loss; None: all others.
        """
        loss = figures.get("loss")
        if loss is not None:
            keep = min(0.98, self.losses / (self.losses + 3))  # the first ones are soon forgotten
            self.loss = loss if self.loss is None else keep * self.loss + (1 - keep) * loss
            self.losses += 1
        if more is None:
            more = " ".join(f"{k} {v:.3f}" for k, v in figures.items() if k not in ("loss", "norm", "seconds"))
        shown = "" if self.loss is None else f"loss {self.loss:.3f}"
        self.count(self.unit, step, self.steps, ", ".join(filter(None, (shown, more))))

    def validated(self, step: int, figures: dict[str, float]) -> None:
        """Show the figures of a validation."""
        self.note(f"validation at step {step}: " + ", ".join(f"{k} {v:.3f}" for k, v in figures.items()))
        if figures.get("reliance") == 0:
            self.note(f"warning: {NOT_USED}")
