"""Sizes that every forecaster is built with."""


def check_sizes(**sizes: int) -> None:
    """Raises ValueError for a size below 1; the command line fills the data's sizes in."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")
