"""How well every system of this project ranks, on one store's test products: `python -m benchmarks.quality --help`."""
