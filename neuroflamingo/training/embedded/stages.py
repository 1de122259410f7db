"""`train_stages`: paint, encoder, language model, fusion, save; run again, it resumes at the exact step."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from neuroflamingo.model.prompt_forms import PromptForm, TrainedPrompts
from neuroflamingo.painting.real_heads import find_heads
from neuroflamingo.progress import say
from neuroflamingo.training.embedded.encoder_stage import train_encoder
from neuroflamingo.training.embedded.fusion_batches import FusionCases
from neuroflamingo.training.embedded.fusion_stage import FusionTask, assemble
from neuroflamingo.training.embedded.language_model_stage import train_language_model
from neuroflamingo.training.embedded.painted_pool import CasePool, PoolHeads, paint_in_background
from neuroflamingo.training.embedded.second_look_records import SecondLookRecords, fit_second_look
from neuroflamingo.training.embedded.stage import check_starts, plan_of_run, train_stage
from neuroflamingo.training.embedded.token_cache import TokenCache
from neuroflamingo.training.parallel import accelerate_for
from neuroflamingo.training.run_folder import check_folder, claim_folder, is_done, write_model
from neuroflamingo_encoders.contract import weights_digest
from neuroflamingo_encoders.families.tiny_t1w.cards import CARD
from neuroflamingo_preprocessing.errors import ModelError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerFast

    from neuroflamingo.evaluation.readout import Thresholds
    from neuroflamingo.model.neuroflamingo import NeuroFlamingo
    from neuroflamingo.recipe.embedded_recipe import EmbeddedRecipe, PaintSettings, PromptSettings


def train_stages(recipe: EmbeddedRecipe, folder: Path, *, resume: bool = True, quiet: bool = False) -> Path:
    """Run all stages of a recipe and return the folder of the finished model.

    Args:
        recipe: see `EmbeddedRecipe`.
        folder: folder of the run.
        resume: resume from existing stages; False starts over.
        quiet: nothing on standard error.

    Raises:
        ConfigError: the folder belongs to another recipe.
        NotFoundError: a stage's weights to start from are not there.
        NeuroFlamingoError: see `Loop.run`.
    """
    accelerator = accelerate_for(recipe, folder)
    plan = plan_of_run(recipe, folder)
    check_folder(folder, plan, resume, accelerator)
    if resume and is_done(folder):
        return folder / "model"
    check_starts(recipe)
    claim_folder(folder, plan, resume, accelerator)
    if recipe.run.deterministic:
        torch.use_deterministic_algorithms(True)
    pools = _paint(recipe, folder / "pools", accelerator)

    def tell(what: str, figures: dict[str, float]) -> None:
        if accelerator.is_main_process and not quiet:
            line = ", ".join(f"{key} {value:.3f}" for key, value in figures.items())
            say(f"{what}: {line}", file=sys.stderr, flush=True)

    encoder, thresholds, read = train_encoder(
        folder / "encoder", recipe, pools["encoder"], pools["validation"], accelerator, quiet
    )
    tell("encoder readout on validation cases", read)
    encoder.freeze()
    language_model, tokenizer, said = train_language_model(folder / "language_model", recipe, accelerator, quiet)
    tell("language model", said)
    caches = {
        name: TokenCache(folder / "tokens" / name, pools[name], encoder, accelerator, quiet)
        for name in ("fusion", "validation", "pairs", "validation_pairs")
        if name in pools
    }
    cases = FusionCases(caches["fusion"], caches.get("pairs"))
    held_out = FusionCases(caches["validation"], caches.get("validation_pairs"))
    torch.manual_seed(recipe.seed)
    model, processor = assemble(encoder, language_model, tokenizer, recipe.fusion)
    _check_encoder(model, cases.single)
    task = FusionTask(recipe, model, tokenizer, cases, held_out, accelerator)
    wrote = train_stage(task, folder / "fusion", recipe.fusion.start, quiet)
    tell("reports on validation cases", wrote)
    if accelerator.is_main_process:
        records = _second_look(recipe, model, tokenizer, cases, held_out, quiet)
        figures = {"encoder": read, "fusion": wrote}
        done = finished(model, recipe, thresholds, figures, records)
        write_model(folder, done, processor, figures, records.likeness)
    accelerator.wait_for_everyone()
    return folder / "model"


def _paint(recipe: EmbeddedRecipe, folder: Path, accelerator: Accelerator) -> dict[str, CasePool]:
    """Make the pools by name, in the order of their use; the first process paints them in the background."""
    elsewhere, paint, fusion = not accelerator.is_main_process, recipe.paint, recipe.fusion
    own = _heads(folder, paint, paint.heads, "training")
    others = _heads(folder, paint, paint.validation_heads, "held out")
    pools = {
        "validation": CasePool(folder / "validation", *paint.validation, others, painted_elsewhere=elsewhere),
        "encoder": CasePool(
            folder / "encoder", *paint.encoder, own, recipe.encoder.crowded, painted_elsewhere=elsewhere
        ),
        "fusion": CasePool(folder / "fusion", *paint.fusion, own, painted_elsewhere=elsewhere),
    }
    if fusion.prompts.follow_up:
        for name, numbers, heads in (
            ("pairs", fusion.pairs, own),
            ("validation_pairs", fusion.validation_pairs, others),
        ):
            pools[name] = CasePool(folder / name, *numbers, heads, pairs=True, painted_elsewhere=elsewhere)
    if accelerator.is_main_process:
        paint_in_background(*pools.values(), processes=paint.processes)
    return pools


def _heads(folder: Path, paint: PaintSettings, named: str | None, part: Literal["training", "held out"]) -> PoolHeads:
    extracted = CARD.scan.step("fill_outside_brain") is not None
    files = () if named is None else find_heads(named)
    return PoolHeads(files, paint.real_share, extracted, folder / "heads", paint.outlines, part)


def _check_encoder(model: NeuroFlamingo, cache: TokenCache) -> None:
    """Check that the model has the encoder whose tokens are cached; with another one its reports are meaningless."""
    if weights_digest(model.encoder) != cache.weights:  # type: ignore[arg-type]
        raise ModelError("the encoder of the assembled model is not the trained one", exit_code=70)


def _second_look(
    recipe: EmbeddedRecipe,
    model: NeuroFlamingo,
    tokenizer: PreTrainedTokenizerFast,
    cases: FusionCases,
    held_out: FusionCases,
    quiet: bool,
) -> SecondLookRecords:
    """Fit what the model needs to judge its own reports."""
    training, others = (
        () if named is None else find_heads(named) for named in (recipe.paint.heads, recipe.paint.validation_heads)
    )
    return fit_second_look(
        model,
        tokenizer,
        cases.single,
        held_out.single,
        training_heads=training,
        healthy_heads=others,
        quiet=quiet,
    )


def finished(
    model: NeuroFlamingo,
    recipe: EmbeddedRecipe,
    thresholds: Thresholds,
    figures: dict[str, Any],
    records: SecondLookRecords,
) -> NeuroFlamingo:
    """Convert the model to half precision (it is loaded in float32) and record its training, ready to be saved."""
    model.config.prompts = trained_prompts(recipe.fusion.prompts).model_dump(mode="json")
    model.config.training = {
        "recipe": recipe.model_dump(mode="json"),
        "thresholds": asdict(thresholds),
        "validation": figures,
        "calibration": records.calibration.model_dump(mode="json"),
        "healthy_heads_refused": list(records.refused),
    }
    return model.cpu().to(torch.float16)  # pyright: ignore[reportArgumentType]


def trained_prompts(prompts: PromptSettings) -> TrainedPrompts:
    """Forms of prompts that a model is trained for."""
    few: tuple[PromptForm, ...] = ("few-shot",) if prompts.few_shot else ()
    later: tuple[PromptForm, ...] = ("follow-up",) if prompts.follow_up else ()
    return TrainedPrompts(
        max_examples=prompts.examples if few else 0,
        max_scans=2 if later else 1,
        forms=("one scan", *few, *later),
    )
