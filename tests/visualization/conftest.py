from __future__ import annotations

from typing import Any

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that has been saved, to be asked what stands where in it."""
    saved: list[Figure] = []
    save = Figure.savefig

    def save_and_keep(figure: Figure, *args: Any, **kwargs: Any) -> None:
        save(figure, *args, **kwargs)
        # Saved at other dots an inch than those at which it answers now.
        figure.draw_without_rendering()
        saved.append(figure)

    monkeypatch.setattr(Figure, "savefig", save_and_keep)
    return saved
