"""Patch tokens on disk: single files (npz, safetensors, zarr) and stores."""
