from __future__ import annotations

from types import SimpleNamespace

import torch

from cityscapes_maskrcnn.engine.hooks import SeedEveryStep


def drawn(seed: int, iteration: int) -> list[float]:
    hook = SeedEveryStep(seed)
    hook.trainer = SimpleNamespace(iter=iteration)
    hook.before_step()
    return torch.rand(4).tolist()


def test_draws_depend_on_seed_and_iteration_only() -> None:
    expected = drawn(3, 10)
    torch.rand(1000)  # anything may happen in between
    assert drawn(3, 10) == expected
    assert drawn(3, 11) != expected
    assert drawn(4, 10) != expected


def test_neighbouring_seeds_do_not_share_numbers() -> None:
    # With seed + iteration, seed 1 at iteration 2 would repeat seed 2 at iteration 1.
    assert drawn(1, 2) != drawn(2, 1)


def test_a_resumed_run_takes_over_the_seed() -> None:
    hook = SeedEveryStep(5)
    hook.load_state_dict(SeedEveryStep(9).state_dict())
    assert hook.seed == 9
