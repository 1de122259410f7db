"""One folder for each family of encoders: its cards and its network."""
