"""The encoder of the embedded model: T1-weighted heads."""
