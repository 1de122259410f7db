"""Scoring of reports against known findings, next to controls that show whether the model used the scan."""
