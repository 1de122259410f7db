"""Ready tokens, passed on as they are."""
