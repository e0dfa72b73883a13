"""What a run tells: metrics, FLOPs, plots."""
