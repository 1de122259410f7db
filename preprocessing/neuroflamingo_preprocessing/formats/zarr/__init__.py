"""Zarr: metadata, chunks, shards, and what a folder claims to hold."""
