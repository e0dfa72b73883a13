"""The model: embeddings, encoder, heads, task weighting."""
