"""The tiny model in transformers' Trainer, trl's SFTTrainer, Lightning and a plain loop: one road of losses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, Trainer, TrainingArguments

from neuroflamingo.checkpoints.load_model import load
from neuroflamingo.model.neuroflamingo import NeuroFlamingo
from tests.tiny import tiny_batch, tiny_model, tiny_scans

STEPS, RATE = 5, 1e-2
slow = pytest.mark.slow  # trl and Lightning take seconds to import


class Samples(Dataset):
    """Ten batches' worth of rows of one length: ids, labels, ready tokens of one scan."""

    def __init__(self, processor: Any, rows: int = 2 * STEPS) -> None:
        self.rows = []
        for number in range(rows):
            scan = tiny_scans(1, 1, number)[0, 0]
            batch = processor(f"<image> w{number} w{number + 1} w3", scan_tokens=[[scan]])
            ids = batch["input_ids"][0]
            self.rows.append(
                {
                    "input_ids": ids,
                    "labels": ids.masked_fill(ids == 62, -100),
                    "attention_mask": torch.ones_like(ids),
                    "scan_tokens": batch["scan_tokens"][0],
                    "scan_mask": batch["scan_mask"][0],
                }
            )
        self.column_names = list(self.rows[0])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.rows[index]


def together(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def arguments(folder: Path, kind: Any = TrainingArguments, **more: Any) -> Any:
    return kind(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1e9,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        optim="adamw_torch",
        train_sampling_strategy="sequential",
        **more,
    )


@pytest.fixture(scope="module")
def start() -> tuple[NeuroFlamingo, Any]:
    model, processor = tiny_model("llama")
    return model.freeze_for_training(embeddings="all"), processor


def plain_loop(model: NeuroFlamingo, data: Samples) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], RATE, weight_decay=0.0)
    model.train()
    losses = []
    for batch in DataLoader(data, 2, collate_fn=together):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return losses


@pytest.fixture(scope="module")
def expected(start) -> list[float]:
    model, processor = start
    losses = plain_loop(copy.deepcopy(model), Samples(processor))
    assert losses[-1] < losses[0]
    return losses


def logged(trainer: Any) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@slow
def test_trainer_trains_evaluates_and_its_checkpoints_load(start, expected, tmp_path):
    model, processor = copy.deepcopy(start[0]), start[1]
    data = Samples(processor)
    how = arguments(
        tmp_path,
        eval_strategy="steps",
        eval_steps=STEPS,
        save_steps=STEPS,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
    )
    trainer = Trainer(model, how, together, train_dataset=data, eval_dataset=data)
    trainer.train()
    assert logged(trainer) == pytest.approx(expected, rel=1e-4)
    assert 0 < trainer.evaluate()["eval_loss"] < expected[0]
    checkpoint = tmp_path / f"checkpoint-{STEPS}"
    assert (checkpoint / "optimizer.pt").is_file() and (checkpoint / "training_args.bin").is_file()
    for file in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth"):
        (checkpoint / file).write_bytes(b"never opened")
    again = NeuroFlamingo.from_pretrained(checkpoint)
    batch = tiny_batch(processor)
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model.eval()(**batch).logits)


@slow
def test_sft_trainer_trains(start, expected, tmp_path):
    import datasets
    from trl import SFTConfig, SFTTrainer

    model, processor = copy.deepcopy(start[0]), start[1]
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.eos_token = "<|endofchunk|>"
    how = arguments(
        tmp_path, SFTConfig, gradient_checkpointing=False, bf16=False, dataset_kwargs={"skip_prepare_dataset": True}
    )
    rows = [{name: value.tolist() for name, value in row.items()} for row in Samples(processor).rows]
    data = datasets.Dataset.from_list(rows).with_format("torch")
    trainer = SFTTrainer(model, how, data_collator=together, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    assert logged(trainer) == pytest.approx(expected, rel=1e-4)


@slow
def test_lightning_trains(start, expected):
    import lightning

    model, processor = copy.deepcopy(start[0]), start[1]
    losses = []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            loss = self.model(**batch).loss
            losses.append(float(loss.detach()))
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], RATE, weight_decay=0.0)

    model.train()
    trainer = lightning.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), DataLoader(Samples(processor), 2, collate_fn=together))
    assert losses == pytest.approx(expected, rel=1e-4)


def test_the_embedded_model_is_read_in_float32_and_trains_without_nan():
    folder = Path(__file__).parents[3] / "neuroflamingo" / "pretrained" / "tiny-t1w"
    model = NeuroFlamingo.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert NeuroFlamingo.from_pretrained(folder, dtype="auto").dtype == torch.float16
    _, processor = load("tiny-t1w", device="cpu")
    batch = processor("<image>no acute finding in the brain", scan_tokens=[torch.ones(256, 192)])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    losses = []
    for _ in range(3):
        loss = model.train()(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[0] > losses[1] > losses[2]


def test_auto_classes_load_a_saved_model(tmp_path):
    model, processor = tiny_model("llama")
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model_type == "neuroflamingo"
    batch = tiny_batch(processor)
    for kind in (AutoModelForCausalLM, AutoModel):
        again = kind.from_pretrained(tmp_path)
        assert isinstance(again, NeuroFlamingo) and again.dtype == torch.float32
        with torch.no_grad():
            assert torch.equal(again(**batch).logits, model(**batch).logits)
