"""Cards of encoders of biological sequences; no torch. `tokenizer.sequence_to_ids` turns text into ids."""

from __future__ import annotations

from typing import Any, Literal

from neuroflamingo_encoders.card import Cost, Demand, EncoderCard, OutputSpec
from neuroflamingo_encoders.families.vit3d.cards import restricted_weights
from neuroflamingo_preprocessing.spec import Axis, ScanSpec, Step

VOCABULARY = 4105
"""Size of the vocabulary: four special tokens, 4096 6-mers, A, T, C, G and N."""
LONGEST = 1000
"""Maximum number of tokens, with the class token: of the 1002 rows of the position table, the first two are unused."""
TINY: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "nucleotide-transformer": ({"token": 12}, {"width": 16, "depth": 2, "heads": 2, "mlp": 32}),
}
"""As `vit3d.cards.TINY`. The batch holds whole numbers: ids that begin with 3, the class token."""


def nucleotide_transformer_card(
    strand: Literal["forward", "reverse_complement", "mean"] = "forward",
    pool: int = 1,
    width: int = 1280,
    depth: int = 24,
    heads: int = 20,
    mlp: int = 5120,
) -> EncoderCard:
    """InstaDeep's Nucleotide Transformer (first generation; `500m-human-ref` and `500m-1000g` by default).

    Args:
        strand: the strand to read; `mean` averages each token with its partner on the other strand.
        pool: number of tokens per window to average over; 1: no pooling. The class token is never pooled.
        width, depth, heads, mlp: of another release.

    Raises:
        ValueError: unknown strand, or `pool` below 1.
    """
    if strand not in ("forward", "reverse_complement", "mean") or pool < 1:
        raise ValueError("strand is 'forward', 'reverse_complement' or 'mean', pool is at least 1")
    return EncoderCard(
        name="nucleotide-transformer",
        version="1",
        summary="DNA sequence of up to 5,994 letters in words of six, 500M transformer trained on human genomes",
        implementation="neuroflamingo_encoders.families.nucleotide_transformer.network:NucleotideTransformerEncoder",
        repository="https://github.com/instadeepai/nucleotide-transformer",
        paper="https://doi.org/10.1038/s41592-024-02523-z",
        citation="Dalla-Torre et al. Nucleotide Transformer: building and evaluating robust foundation models for "
        "human genomics. Nature Methods 2024.",
        scan=ScanSpec(
            modality="sequence",
            axes=(Axis(name="token", minimum=2, maximum=LONGEST),),
            channels=(),
            steps=(Step.named("six_letter_words", vocabulary="InstaDeep 4105", class_token="first"),),
        ),
        demands=(Demand(what="the reference build and the region, kept with the run", level="recommended"),),
        network={  # pyright: ignore[reportArgumentType]
            "depth": depth,
            "heads": heads,
            "mlp": mlp,
            "vocabulary": VOCABULARY,
            "longest": LONGEST,
            "strand": strand,
            "pool": pool,
        },
        output=OutputSpec(
            width=width,
            tokens="token" if pool == 1 else f"1 + (token + {pool - 2}) // {pool}",
            order=("token",),
            cls="first",
            variable_length=True,
        ),
        weights=restricted_weights(
            "CC-BY-NC-SA-4.0",
            "https://huggingface.co/InstaDeepAI/nucleotide-transformer-500m-human-ref",
            redistribution=True,
            allow_unexpected=("lm_head.*", "esm.contact_head.*", "esm.pooler.*", "esm.embeddings.position_ids"),
        ).model_copy(update={"derivatives": True}),
        cost=Cost(
            parameters=(VOCABULARY + LONGEST + 2 + 2) * width
            + depth * (4 * width * width + 2 * width * mlp + 9 * width + mlp)
        ),
    )
