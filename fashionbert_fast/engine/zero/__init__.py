"""DeepSpeed's ZeRO: gradients in flat buckets, and a run's state out of its partitions."""
