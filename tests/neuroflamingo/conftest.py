"""A tiny model that always writes one report, and a real head on disk: what the road needs, in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

REPORT = (
    "TECHNIQUE: T1-weighted MRI.\nFINDINGS: Chronic infarct in the left temporal lobe of 24 mm. No mass.\n"
    "IMPRESSION: 1. Chronic infarct in the left temporal lobe."
)


@pytest.fixture(scope="session")
def written_report() -> str:
    """What the tiny model writes, whatever it sees."""
    return REPORT


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model: the real encoder without training, and a language model that learnt one report by heart."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from neuroflamingo.model.neuroflamingo import NeuroFlamingo
    from neuroflamingo_encoders import build_encoder

    end = "<|endofchunk|>"
    words = Tokenizer(models.BPE())
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    words.train_from_iterator(
        [REPORT] * 3, trainers.BpeTrainer(vocab_size=420, special_tokens=[end], show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=end)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id,
    )
    language_model = LlamaForCausalLM(config)
    ids = torch.tensor([tokenizer(f"{end}{REPORT}{end}")["input_ids"]])
    optimizer = torch.optim.Adam(language_model.parameters(), 1e-2)
    for _ in range(120):
        loss = language_model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    model, processor = NeuroFlamingo.assemble(
        build_encoder("tiny-t1w-cnn"),
        language_model,
        tokenizer,
        resampler={"dim": 192, "depth": 1, "num_latents": 4, "heads": 2, "dim_head": 8},
        gate=0.05,
        heads=2,
        dim_head=8,
    )
    with torch.no_grad():  # a scan begins a report as the end of the one before it does
        table = language_model.get_input_embeddings().weight
        table[model.config.image_token_id] = table[tokenizer.eos_token_id]
    folder = tmp_path_factory.mktemp("models") / "tiny-test"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def head_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The MNI152 head at 2 mm, stored in an unusual orientation (left, posterior, superior)."""
    import nibabel as nib
    import numpy as np
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=2)
    turned = nib.orientations.axcodes2ornt("LPS")
    image = image.as_reoriented(turned)
    voxels = np.asarray(image.dataobj, dtype=np.float32)
    path = tmp_path_factory.mktemp("scans") / "sub-01_T1w.nii.gz"
    out = nib.Nifti1Image((voxels / voxels.max() * 1000).astype(np.int16), image.affine)
    out.header.set_xyzt_units("mm")
    out.to_filename(path)
    return path


@pytest.fixture
def aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the search for the alignment: the head of these tests lies in the template already."""
    from neuroflamingo_preprocessing.structural import prepare_volume
    from tests.aligned import lies_in_the_template

    found = lies_in_the_template()
    monkeypatch.setattr(prepare_volume, "align", lambda voxels, affine: found)
