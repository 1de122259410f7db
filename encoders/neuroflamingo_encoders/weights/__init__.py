"""Encoders' weights: the cache, downloads, verification, conversion."""
