"""A training loop of one's own, from the small pieces; runs in seconds on a CPU: `python docs/own_training.py`.

Every "scan" is 8 ready tokens that hold a side; the language model, random here, learns to report that side. Put your
own model, tokenizer and samples in the places of `parts` and `samples`; the pieces stay.
"""

from __future__ import annotations

import sys

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from neuroflamingo.data import build_labels, mix
from neuroflamingo.model.neuroflamingo import NeuroFlamingo
from neuroflamingo.recipe import LoraSettings, OptimSettings, TrainedSettings
from neuroflamingo.training import add_lora, freeze, parameter_groups
from neuroflamingo.training.schedule import rate

WIDTH, TOKENS = 32, 8
ANSWER = "it relaxes fast"


def parts():
    """Yours: any causal language model of transformers, its tokenizer, and an encoder (None: ready tokens)."""
    words = f"mass on the left right what of T1 ? {ANSWER}".split()
    table = Tokenizer(models.WordLevel({word: n for n, word in enumerate(["<unk>", *words])}, unk_token="<unk>"))
    table.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=table, unk_token="<unk>")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=None, **sizes)
    return None, LlamaForCausalLM(config), tokenizer


def samples():
    """Yours: for each kind of data, texts with the scan that each `<image>` stands for."""
    sides = [("left", 1.0), ("right", -1.0)] * 8
    pairs = [(f"<image>mass on the {side}<|endofchunk|>", torch.randn(TOKENS, WIDTH) + x) for side, x in sides]
    return {"pairs": pairs, "text": [(f"what of T1 ? {ANSWER}<|endofchunk|>", None)]}


def sequence(kind, text, scan, tokenizer):
    """Token ids, labels and the scan (a masked one where the text has none) of one sample."""
    ids = tokenizer(text, return_tensors="pt").input_ids
    answers = torch.zeros_like(ids, dtype=torch.bool)
    answers[:, -len(ANSWER.split()) - 1 :] = kind == "text"  # what the assistant says, its end included
    labels = build_labels(kind, ids, tokenizer, answers)
    return ids[0], labels[0], torch.zeros(TOKENS, WIDTH) if scan is None else scan, scan is not None


def batch_of(draws, data, mixture, tokenizer):
    """The samples of these draws, padded on the right."""
    drawn = [(kind, *data[kind][index]) for kind, index in map(mixture.draw, draws)]
    ids, labels, scans, shown = zip(*(sequence(*sample, tokenizer) for sample in drawn), strict=True)
    return {
        "input_ids": pad_sequence(ids, True, tokenizer.pad_token_id),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], True, 0),
        "labels": pad_sequence(labels, True, -100),
        "scan_tokens": torch.stack(scans)[:, None],  # [batch scan token width], one scan a text
        "scan_mask": torch.tensor(shown)[:, None],
    }


def main(steps: int = 60, batch: int = 8) -> list[float]:
    torch.manual_seed(0)
    encoder, language_model, tokenizer = parts()
    resampler = {"dim": WIDTH, "depth": 1, "num_latents": 4, "heads": 2, "dim_head": 16}
    model, _ = NeuroFlamingo.assemble(encoder, language_model, tokenizer, resampler=resampler)
    add_lora(model, LoraSettings(rank=4, targets=("q_proj", "v_proj", "to_q", "ff.1")))
    freeze(model, TrainedSettings(parts=("resampler", "gated_blocks", "embeddings")))  # branches train as well
    optim = OptimSettings(steps=steps, lr=5e-3, warmup=5, weight_decay=0.01)
    optimizer = torch.optim.AdamW(parameter_groups(model, optim))
    data = samples()
    mixture = mix({kind: len(found) for kind, found in data.items()}, {"pairs": 3, "text": 1}, seed=0)
    losses, trained = [], [p for p in model.parameters() if p.requires_grad]
    model.train()  # frozen parts stay in eval mode
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, optim)
        draws = range(step * batch, (step + 1) * batch)  # the same samples in each run, wherever it begins
        loss = model(**batch_of(draws, data, mixture, tokenizer), loss_only=True).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    model.eval()
    for side, x in (("left", 1.0), ("right", -1.0)):
        prompt = tokenizer("<image>", return_tensors="pt") | {"scan_tokens": torch.randn(1, 1, TOKENS, WIDTH) + x}
        report = tokenizer.decode(model.generate(**prompt, max_new_tokens=4, do_sample=False)[0])
        print(f"a new scan, {side}: {report}")
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
