"""Whole training steps beside other recipes and engines."""
