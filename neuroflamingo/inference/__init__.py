"""From scans to a report: the loaded model, decoding, and the whole pipeline."""
