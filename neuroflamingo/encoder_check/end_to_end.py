"""`check_encoder` with all eleven groups: those of `neuroflamingo_encoders.conformance`, and an end-to-end check.

Group 11 combines the encoder with a resampler and a two-layer language model, and trains them to tell two scans apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from neuroflamingo.model.neuroflamingo import NeuroFlamingo
from neuroflamingo_encoders.conformance import check
from neuroflamingo_encoders.conformance.check import CheckResult, failures
from neuroflamingo_encoders.conformance.subject import Check, Failure, Source, Subject

__all__ = ["CheckResult", "check_encoder", "failures"]

STEPS = 300
WORDS = 8
CHANCE = 0.6931
"""Loss of the distinguishing word for a model that cannot tell two scans apart: log 2."""
LEARNT = 0.5 * CHANCE


def check_encoder(
    encoder: Source,
    *,
    fixtures: str | Path | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> Iterator[CheckResult]:
    """Run all eleven groups of checks on an encoder; see `neuroflamingo_encoders.conformance.check_encoder`."""
    return check.check_encoder(encoder, fixtures=fixtures, expected_failures=expected_failures, extra=END_TO_END)


def toy_model(subject: Subject) -> NeuroFlamingo:
    """Frozen encoder with a one-layer resampler and a two-layer language model, a few thousand weights each."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = LlamaConfig(
        vocab_size=WORDS + 3,  # with <|endofchunk|>, <image> and <PAD>
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.5,  # frozen and untrained, it must still be able to prefer one word over another
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, _ = NeuroFlamingo.assemble(
            subject.frozen(),
            LlamaForCausalLM(config),
            PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0"),
            resampler={"dim": subject.card.output.width, "depth": 1, "num_latents": 4, "heads": 2, "dim_head": 16},
            gate=0.5,
            heads=2,
            dim_head=16,
        )
    return model


def two_scans(model: NeuroFlamingo, subject: Subject) -> dict[str, Tensor]:
    """Two rows with one scan each, and texts that differ in the word after it: w1 for the first, w2 for the second.

    The second scan also has a different contrast and is brighter at one end: large encoders average noise away, and
    encoders that scale each scan remove contrast.
    """
    scans = subject.input(2)
    if scans.is_floating_point():
        longest = max(range(1, scans.ndim - 1), key=lambda axis: scans.shape[axis + 1])
        shape = [-1 if axis == longest else 1 for axis in range(scans.ndim - 1)]
        scans[1] = 2 * scans[1] + 1 + torch.linspace(-4, 4, scans.shape[longest + 1]).reshape(shape)
    ids = torch.tensor([[model.config.image_token_id, 3, 1], [model.config.image_token_id, 3, 2]])
    labels = torch.full_like(ids, -100)
    labels[:, 2] = ids[:, 2]
    return {"input_ids": ids, "labels": labels, "scans": scans}


def gradients(subject: Subject) -> str:
    """Check that the loss reaches every weight of the resampler through the tokens, and none of the encoder's."""
    model = toy_model(subject).train()
    _loss(model(**two_scans(model, subject))).backward()
    idle = [name for name, p in model.perceiver.named_parameters() if p.grad is None or not bool(p.grad.any())]
    if idle:
        raise Failure(f"{len(idle)} weights of the resampler get no gradient, first {idle[0]}")
    assert model.encoder is not None
    touched = [name for name, p in model.encoder.named_parameters() if p.grad is not None]
    if touched:
        raise Failure(f"{len(touched)} weights of the frozen encoder get a gradient, first {touched[0]}")
    return f"{sum(1 for _ in model.perceiver.parameters())} tensors of the resampler get a gradient"


def learns(subject: Subject) -> str:
    """Check that tokens distinguish two scans: the loss falls below chance, and rises with exchanged scans."""
    model = toy_model(subject).train()
    batch = _encoded(subject, two_scans(model, subject))
    losses = train(model, batch, STEPS)
    if not losses[-1] < LEARNT:
        raise Failure(f"the loss is {losses[-1]:.2f} after {STEPS} steps from {losses[0]:.2f}; chance is {CHANCE:.2f}")
    with torch.no_grad():
        exchanged = float(_loss(model.eval()(**batch | {"scan_tokens": batch["scan_tokens"].flip(0)})))
    if exchanged < CHANCE:
        raise Failure(f"the loss is {exchanged:.2f} with exchanged scans: it was not learnt from the tokens")
    return f"loss {losses[0]:.2f} to {losses[-1]:.2f} in {len(losses) - 1} steps, {exchanged:.2f} with exchanged scans"


def train(model: NeuroFlamingo, batch: dict[str, Tensor], steps: int) -> list[float]:
    """Train the parts that `freeze_for_training` leaves trainable; returns the loss before each step and at the end."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(steps):
        loss = _loss(model(**batch))
        losses.append(loss.item())
        if losses[-1] < LEARNT / 10:
            return losses
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return [*losses, float(_loss(model(**batch)))]


def generates(subject: Subject) -> str:
    """Check that the model generates text for encoded scans, the same with and without the cache."""
    model = toy_model(subject).eval()
    batch = two_scans(model, subject)
    prompt = {"input_ids": batch["input_ids"][:, :2], "scans": batch["scans"]}
    how: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    written, again = (model.generate(**prompt, **how, use_cache=cached) for cached in (True, False))
    if not isinstance(written, Tensor) or written.shape[0] != 2 or not torch.equal(written, again):  # type: ignore[arg-type]
        raise Failure("generation with and without the cache differs, or lacks a row")
    return f"{written.shape[1]} tokens a row"


def _encoded(subject: Subject, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replace scans by tokens in a batch: the encoder is frozen, so one pass suffices for all steps."""
    tokens, mask, _ = subject.encode(batch.pop("scans"))
    return batch | {"scan_tokens": tokens} | ({} if mask is None else {"token_mask": mask})


def _loss(output: Any) -> Tensor:
    assert output.loss is not None
    return output.loss


END_TO_END = (
    Check("end_to_end.gradients", 11, gradients),
    Check("end_to_end.learns", 11, learns),
    Check("end_to_end.generates", 11, generates),
)
