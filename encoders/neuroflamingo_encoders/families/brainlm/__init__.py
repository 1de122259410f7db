"""BrainLM: parcel series with coordinates."""
