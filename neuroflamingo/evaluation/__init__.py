"""Scores of what reports say, against the truth and beside what a model says without looking at the scan."""
