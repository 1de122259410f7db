"""BrainMT: runs, convolutions, Mamba over time, attention."""
