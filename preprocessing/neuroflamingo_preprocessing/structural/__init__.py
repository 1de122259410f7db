"""Structural MRI: alignment, resampling, intensity, quality, native space."""
