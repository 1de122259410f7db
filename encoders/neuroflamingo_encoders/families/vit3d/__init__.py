"""Vision transformers on structural volumes: BrainIAC, M3D-CLIP, and one to train."""
