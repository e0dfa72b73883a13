"""Saving, searching and evaluating."""
