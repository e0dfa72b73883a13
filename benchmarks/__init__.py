"""Side-by-side measurements. Every row names the peer it is compared with, measured in the same run."""
