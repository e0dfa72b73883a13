"""Batches ahead of the step: loader processes, and the copy to the device."""
