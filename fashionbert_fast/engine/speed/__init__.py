"""What makes a step faster: CUDA graphs, FP8, huge pages."""
