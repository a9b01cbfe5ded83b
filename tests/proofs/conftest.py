"""What proofs share: the line in which a measured figure is told."""

from collections.abc import Callable

import pytest


@pytest.fixture
def figure() -> Callable[..., None]:
    """figure(name, asked, measured, n): tell what was asked for and what was measured."""

    def tell(name: str, asked: object, measured: object, n: int) -> None:
        print(f"{name}: asked {asked}, measured {measured}, n = {n}")

    return tell
