"""Zarr: metadata, chunks, shards, and the size that a folder claims."""
