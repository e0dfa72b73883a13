"""Checkpoints: written beside training, verified, resumed from."""
