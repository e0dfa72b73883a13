"""The GPU legs in Triton: an operator a file, kernels and launchers. kernels/NAME.py registers them."""
