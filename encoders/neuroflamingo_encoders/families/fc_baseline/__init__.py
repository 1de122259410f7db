"""The functional-connectivity baseline."""
