"""Inference: the loaded model, decoding, and the whole pipeline from scans to a report."""
