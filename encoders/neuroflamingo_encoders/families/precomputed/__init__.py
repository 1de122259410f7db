"""Precomputed tokens, passed on unchanged."""
