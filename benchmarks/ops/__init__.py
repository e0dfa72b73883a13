"""An operator beside plain PyTorch and torch.compile."""
