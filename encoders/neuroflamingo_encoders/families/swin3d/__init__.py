"""Swin transformers on structural volumes: BrainSegFounder and SwinUNETR's encoder."""
