"""Checks of a configuration's fields: a ValueError that begins with the field's name."""

from __future__ import annotations


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def within(name: str, value: float, low: float, high: float, *, open_high: bool = False) -> None:
    if not (low <= value < high if open_high else low <= value <= high):
        raise ValueError(f"{name} must lie in [{low}, {high}{')' if open_high else ']'}, got {value}")


def at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
