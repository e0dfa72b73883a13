"""Ranking: candidates, recall with intervals, thresholds and weights that validation chooses."""
