"""CLIP and SigLIP towers on the slices of a volume."""
