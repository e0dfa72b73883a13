"""What ends a run: signals, steps that are not finite, ranks that hang."""
