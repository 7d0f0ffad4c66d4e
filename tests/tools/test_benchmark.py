"""The benchmark tool on a tiny case: it compares the scores itself, so it can fail."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cityscapes_maskrcnn.benchmarks import evaluation, loading, recipe_ablation
from cityscapes_maskrcnn.benchmarks.determinism_cost import benchmark_determinism
from cityscapes_maskrcnn.benchmarks.evaluation import benchmark_evaluation
from cityscapes_maskrcnn.benchmarks.evaluation_at_scale import benchmark_scale
from cityscapes_maskrcnn.benchmarks.loading import benchmark_loading

STAGE_1 = Path(__file__).parents[2] / "configs" / "stage_1_heads.yaml"
Run = Callable[..., subprocess.CompletedProcess[str]]


def test_evaluation_prints_ratios_and_leaves_nothing(tool: Run, tmp_path: Path) -> None:
    small = ["--images", 1, "--repeats", 1, "--predictions", 12, "--height", 96, "--width", 192]
    done = tool("tools/benchmark.py", "evaluation", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| here")]
    assert len(rows) == 6
    # Times, then ratios to the other system.
    assert all(float(row[1]) > 0 and row[4].strip().endswith("x") for row in rows)
    assert not list(tmp_path.iterdir())


def test_at_scale_has_a_row_for_every_number_of_workers(tmp_path: Path) -> None:
    config = tmp_path / "few_proposals.yaml"
    config.write_text(f"_BASE_: {STAGE_1}\nMODEL: {{RPN: {{POST_NMS_TOPK_TEST: 10}}}}\n")
    table = benchmark_scale(2, 12, 96, 192, workers=[0], config_file=config, model_side=32)
    workers, _, model, both, images_per_second, *_ = table.splitlines()[-1].split("|")[1:-1]
    assert int(workers) == 0
    assert 0 < float(model) <= float(both)
    assert float(images_per_second) > 0


def test_loading_compares_what_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    table = benchmark_loading(4, 30, 1).splitlines()
    assert [line.split("|")[1].strip() for line in table[-3:]] == [
        "Detectron2, four processes",
        "here, first time",
        "here, from the cache",
    ]
    real = loading.load_instances

    def lose_an_object(*arguments: object) -> object:
        images = real(*arguments)  # type: ignore[arg-type]
        images[2]["annotations"].pop()
        return images

    monkeypatch.setattr(loading, "load_instances", lose_an_object)
    with pytest.raises(evaluation.InputError, match="the loaders differ"):
        benchmark_loading(4, 30, 1)
    assert "deeplearning" not in sys.modules


def test_scores_that_differ_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    real = evaluation.to_image_scale

    def off_by_a_pixel(*arguments: object) -> object:
        (instances,) = real(*arguments)  # type: ignore[arg-type]
        instances.pred_boxes.tensor[:, 0] += 1
        return [instances]

    monkeypatch.setattr(evaluation, "to_image_scale", off_by_a_pixel)
    with pytest.raises(evaluation.InputError, match=r"first: AP.* is .*, officially"):
        benchmark_evaluation(1, 12, 96, 192, 1)
    assert Path.cwd() == tmp_path
    assert "deeplearning" not in sys.modules


def test_result_files_with_another_score_are_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    real = evaluation.averages

    def another_score(*arguments: object) -> object:
        scores = real(*arguments)  # type: ignore[arg-type]
        scores["allAp50%"] += 0.125
        return scores

    monkeypatch.setattr(evaluation, "averages", another_score)
    with pytest.raises(evaluation.InputError, match=r"^files, smooth: AP50 is .*, officially"):
        benchmark_evaluation(1, 12, 96, 192, 1)


def test_bad_numbers(tool: Run) -> None:
    with pytest.raises(evaluation.InputError, match=r"--images, .* must be 1 or more"):
        benchmark_evaluation(0, 12, 96, 192, 1)
    with pytest.raises(evaluation.InputError, match=r"--workers and --model-side 0 or"):
        benchmark_scale(9, 12, 96, 192, [-1], STAGE_1)
    with pytest.raises(evaluation.InputError, match=r"--images, .* must be 1 or more"):
        benchmark_loading(0, 30, 1)
    done = tool("tools/benchmark.py", "evaluation", "--images", "few")
    assert done.returncode == 2
    assert "argument --images: invalid int value: 'few'" in done.stderr


def test_recipe_trains_for_equal_compute_and_not_twice(
    tool: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    size = recipe_ablation.Size(train=4, val=4, start=1, iterations=12, seeds=(1,), counted=1)
    monkeypatch.setattr(recipe_ablation, "SMALL", size)
    json_file = tmp_path / "recipe.json"
    options = ("--iterations", 6, "--pieces", "EMA", "--output", tmp_path, "--json", json_file)
    done = tool("tools/benchmark.py", "recipe", "--small", *options)
    assert done.returncode == 0, done.stderr
    _, *results = done.stdout.split("Generated scenes")[0].splitlines()
    names = ["Detectron2's config", "Detectron2's config, AdamW", "staged recipe", "EMA"]
    assert [line.split(", seed 1: AP ")[0] for line in results] == names
    assert all(f"| {name} " in done.stdout for name in names)
    content = json.loads(json_file.read_text())
    settings, seconds, compute = content["settings"], content["seconds"], content["compute"]
    assert (settings["train"], settings["iterations"], settings["seeds"]) == (4, 6, [1])
    (machine,) = settings["machines"]
    assert machine["torch"] == torch.__version__
    assert machine["device"]
    assert list(seconds) == names
    for part in ("rows", "choice"):
        assert [row["name"] for row in content[part]] == names
    total = sum(each["1"] for each in seconds.values())
    assert f"Time of 4 trainings and scorings, summed over the processes: {total / 60:.1f} min" in (
        done.stdout
    )
    assert compute["staged recipe"]["iterations"] == [2, 3, 1]  # 4 : 6 : 2 epochs
    frozen, _, live = compute["staged recipe"]["operations of a step"]
    assert live > 1.3 * frozen
    # EMA is another way to score what the staged recipe has trained.
    assert list(compute) == names[:3]
    assert not list((tmp_path / "small" / "EMA" / "seed_1").glob("stage_*"))
    for arm in compute.values():
        assert arm["budget"] == compute["staged recipe"]["operations"]
        difference = abs(arm["operations"] - arm["budget"])
        assert difference <= max(arm["operations of a step"]) / 2
    again = tool("tools/benchmark.py", "recipe", "--small", *options)
    assert again.stdout.splitlines() == [
        line for line in done.stdout.splitlines() if line not in results
    ]


@pytest.mark.parametrize(
    ("flag", "number", "problem"),
    [
        ("--workers", 0, "it must be at least 1"),
        ("--iterations", 5, "it must be at least 6, so that each of the three stages has some"),
    ],
)
def test_too_few_for_the_recipe(
    tool: Run, tmp_path: Path, flag: str, number: int, problem: str
) -> None:
    done = tool("tools/benchmark.py", "recipe", flag, number, "--output", tmp_path)
    assert (done.returncode, done.stderr) == (1, f"error: {flag} {number}: {problem}\n")
    assert not list(tmp_path.iterdir())


def test_unknown_piece_of_the_recipe(tool: Run, tmp_path: Path) -> None:
    done = tool("tools/benchmark.py", "recipe", "--pieces", "mixup", "--output", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(
        'error: --pieces "mixup": it must be one of "strongest config", "strongest config, NMS", '
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("FOO", "1"), "command line, FOO 1: there is no config key FOO"),
        (("--steps", "0"), "--steps must be 1 or more"),
    ],
)
def test_a_mistake_is_named_before_scenes_are_drawn(
    tool: Run, arguments: tuple[str, ...], problem: str
) -> None:
    done = tool("tools/benchmark.py", "determinism", *arguments)
    assert done.returncode == 1
    assert done.stderr == f"error: {problem}\n"


@pytest.mark.gpu
def test_determinism_has_its_price() -> None:
    """Only on a GPU are there other operations; the times are not judged."""
    config_file = str(STAGE_1)
    table = benchmark_determinism(
        config_file=config_file, steps=2, opts=["INPUT.MIN_SIZE_TRAIN", "(256,)"]
    )
    rows = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
    assert rows == ["False", "True"]
