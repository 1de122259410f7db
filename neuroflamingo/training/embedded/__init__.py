"""The stages of an embedded model (paint, language model, encoder, bridge), each resumable."""
