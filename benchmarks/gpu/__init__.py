"""The suite for a machine with a GPU, and how it gets there without a network."""
