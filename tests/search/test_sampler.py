from __future__ import annotations

import optuna

from cityscapes_maskrcnn.search.sampler import SeededByTrial


def search(numbers: list[int], seed: int = 7) -> list[dict[str, float]]:
    """Run as many trials as the numbers say, each number with a sampler, a worker, of its own."""
    storage = optuna.storages.InMemoryStorage()
    for trials in numbers:
        study = optuna.create_study(
            study_name="s", storage=storage, sampler=SeededByTrial(seed, 4), load_if_exists=True
        )

        def objective(trial: optuna.Trial) -> float:
            x = trial.suggest_float("x", 0, 1)
            return (x - 0.3) ** 2 + trial.suggest_categorical("y", [0, 1])

        study.optimize(objective, n_trials=trials)
    return [trial.params for trial in study.trials]


def test_an_interrupted_search_draws_what_an_uninterrupted_one_draws() -> None:
    whole = search([12])
    # Four at random, then TPE, in one worker or in five.
    assert search([1, 2, 3, 2, 4]) == whole
    assert len({each["x"] for each in whole}) == 12
    assert search([12], seed=8) != whole
    assert search([3], seed=-1) != search([3], seed=-1)


def test_it_learns() -> None:
    """After its random trials it looks where the minimum is, x = 0.3 and y = 0."""
    last = search([40])[-20:]
    assert sum(each["y"] == 0 for each in last) > 15
    # 6 of 20 would be there at random.
    assert sum(abs(each["x"] - 0.3) < 0.15 for each in last) >= 11
