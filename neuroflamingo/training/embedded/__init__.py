"""The stages of an embedded model (paint, language model, encoder, fusion), each a task of the training loop."""
