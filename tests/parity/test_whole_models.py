"""Whole models of any language model family, read by our loader, against upstream's numbers.

The language model is built from the index alone (transformers' config class for its `model_type`). Numbers are compared
where the attention mask is 1 and, for latents, where there is a scan.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from neuroflamingo.checkpoints.openflamingo import LoadReport, load_openflamingo
from neuroflamingo.model.neuroflamingo import NeuroFlamingo
from neuroflamingo.model.resampler import PerceiverResampler


class Loaded(NamedTuple):
    model: NeuroFlamingo
    report: LoadReport


def tokenizer_for(spec: dict[str, Any]) -> PreTrainedTokenizerFast:
    """One word per id, with the special tokens where the index says they are."""
    special = {spec["eoc_token_id"]: "<|endofchunk|>", spec["media_token_id"]: "<image>", spec["pad_token_id"]: "<PAD>"}
    words = {special.get(number, f"word{number}"): number for number in range(spec["lm_config"]["vocab_size"])}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="<PAD>")))
    tokenizer.add_special_tokens({"pad_token": "<PAD>"})
    assert len(tokenizer) == spec["lm_config"]["vocab_size"]
    return tokenizer


def language_model(spec: dict[str, Any]) -> torch.nn.Module:
    config = dict(spec["lm_config"])
    family = config.pop("model_type", spec["lm_family"])
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **config))
    assert type(model).__name__ == spec["lm_class"]
    return model


@functools.cache
def loaded(golden) -> Loaded:
    """The model with all of upstream's tensors under all of upstream's names, read once per fixture."""
    spec = golden.spec
    model, _ = NeuroFlamingo.assemble(
        None,
        language_model(spec),
        tokenizer_for(spec),
        resampler=PerceiverResampler(dim=spec["vis_dim"], **spec["perceiver"]),
        cross_attn_every_n_layers=spec["cross_attn_every_n_layers"],
        **spec["xattn"],
    )
    state = golden.under("state.")
    report = load_openflamingo(model, state | {alias: state[target] for alias, target in spec["aliases"].items()})
    return Loaded(model.eval(), report)


def inputs(golden, scans: str = "input.vision_x") -> dict[str, torch.Tensor]:
    """The arguments of a forward pass; a row has as many scans as `<image>` tokens, other slots are padding."""
    ids, mask = golden["input.lang_x"], golden["input.attention_mask"]
    tokens = golden[scans].flatten(2, 3)
    count = ((ids == golden.spec["media_token_id"]) & mask.bool()).sum(-1, keepdim=True)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "scan_tokens": tokens,
        "scan_mask": torch.arange(tokens.shape[1]) < count,
    }


def close(seen: torch.Tensor, golden: torch.Tensor, atol: float = 1e-5, what: str | None = None) -> None:
    torch.testing.assert_close(seen, golden, atol=atol, rtol=0, msg=what and (lambda text: f"{what}: {text}"))


def test_every_tensor_is_loaded(flamingo):
    model, report = loaded(flamingo)
    assert (report.missing, report.left_over, report.merged) == ((), (), ())
    assert set(report.loaded) == set(model.state_dict())
    assert model.config.decoder_layers == flamingo.spec["decoder_layers_attr_name"]


def test_published_style_checkpoint(flamingo):
    """What upstream's saver keeps goes into a model whose frozen weights are already there."""
    keys = flamingo.spec.get("trainable_checkpoint_keys")
    if keys is None:
        pytest.skip("the index lists no published-style key set")
    golden = loaded(flamingo).model
    model = loaded.__wrapped__(flamingo).model
    state = flamingo.under("state.")
    everything = state | {alias: state[target] for alias, target in flamingo.spec["aliases"].items()}
    with torch.no_grad():
        report = load_openflamingo(model, {key: everything[key] for key in keys})
        for name in report.loaded:
            model.state_dict(keep_vars=True)[name].zero_()
        again = load_openflamingo(model, {key: everything[key] for key in keys})
    assert again == report
    assert not report.left_over
    assert all(name.startswith("lang_encoder.") and ".gated_cross_attn_layer." not in name for name in report.missing)
    assert all(torch.equal(value, golden.state_dict()[name]) for name, value in model.state_dict().items())


def test_latents(flamingo):
    model = loaded(flamingo).model
    given = inputs(flamingo)
    close(model.perceiver(given["scan_tokens"]), flamingo["output.perceiver"])
    present = given["scan_mask"]
    close(model(**given).latents[present], flamingo["output.perceiver"][present])


def test_logits_and_loss(flamingo):
    given = inputs(flamingo)
    output = loaded(flamingo).model(**given, labels=flamingo["input.labels"])
    real = given["attention_mask"].bool()
    close(output.logits[real], flamingo["output.logits"][real])
    close(output.loss, flamingo["output.loss"])


def test_gradients(flamingo):
    model = loaded(flamingo).model
    model.zero_grad()
    model.requires_grad_(True)
    model(**inputs(flamingo), labels=flamingo["input.labels"]).loss.backward()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    golden = flamingo.under("grad.")
    assert golden
    for name, value in golden.items():
        close(parameters[name].grad, value, atol=1e-4, what=f"gradient of {name}")


def written(golden, scans: str, **how: Any) -> torch.Tensor:
    """Prompts and what the model writes after them; upstream ends at `<|endofchunk|>` only."""
    model = loaded(golden).model
    ends = {"eos_token_id": golden.spec["eoc_token_id"], "pad_token_id": golden.spec["pad_token_id"]}
    return model.generate(**inputs(golden, scans), do_sample=False, **ends, **how)


def same_ids(seen: torch.Tensor, golden, name: str) -> None:
    """Equal ids; after a `<image>` that upstream writes, which we never do, the texts differ for good reason."""
    expected, media = golden[name], golden.spec["media_token_id"]
    prompt = golden["input.lang_x"].shape[1]
    for ours, theirs in zip(seen.tolist(), expected.tolist(), strict=True):
        end = theirs.index(media, prompt) if media in theirs[prompt:] else len(theirs)
        assert ours[:end] == theirs[:end]
        assert media not in ours[prompt:]
        assert end < len(theirs) or len(ours) == len(theirs)


def test_greedy(flamingo):
    seen = written(flamingo, "input.vision_x", max_new_tokens=flamingo.spec["greedy_new_tokens"])
    same_ids(seen, flamingo, "output.greedy_ids")


def test_beams(flamingo):
    beams, length = flamingo.spec["num_beams"], flamingo.spec["beam_new_tokens"]
    same_ids(written(flamingo, "input.vision_x", num_beams=beams, max_new_tokens=length), flamingo, "output.beam3_ids")


def test_other_scans(flamingo):
    """Another text for other scans: a model that ignores the scans fails here."""
    seen = written(flamingo, "info.other_vision_x", max_new_tokens=flamingo.spec["greedy_new_tokens"])
    same_ids(seen, flamingo, "info.greedy_ids_with_other_scans")
    assert not torch.equal(flamingo["output.greedy_ids"], flamingo["info.greedy_ids_with_other_scans"])


def test_cached_media(flamingo):
    """The context once with its scans, then token by token from the cache, with the growing mask."""
    model, given = loaded(flamingo).model, inputs(flamingo)
    with torch.no_grad():
        output = model(**given, use_cache=True)
        mask = given["attention_mask"]
        close(output.logits[mask.bool()], flamingo["output.cached_context_logits"][mask.bool()])
        for step, ids in enumerate(flamingo["input.continuation"].split(1, dim=1)):
            mask = torch.cat((mask, torch.ones_like(ids)), dim=1)
            output = model(input_ids=ids, attention_mask=mask, past_key_values=output.past_key_values, use_cache=True)
            golden = flamingo["output.cached_continuation_logits"][:, step]
            close(output.logits[:, 0], golden, what=f"token {step} of the continuation")
