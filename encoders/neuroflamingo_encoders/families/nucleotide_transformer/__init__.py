"""Nucleotide Transformer: DNA sequences."""
