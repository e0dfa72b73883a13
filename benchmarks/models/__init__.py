"""Models of what cannot be measured here: bytes of a layer, steps of a cluster."""
