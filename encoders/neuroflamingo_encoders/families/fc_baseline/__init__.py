"""Functional-connectivity baseline."""
