"""Where a training step's time goes: named ranges, traces read back, work counted, ceilings, one report."""
