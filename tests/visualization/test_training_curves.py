from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.visualization.overfitting import plot_overfitting
from cityscapes_maskrcnn.visualization.style import About
from cityscapes_maskrcnn.visualization.training_curves import (
    Run,
    about_runs,
    find_runs,
    plot_each_run,
    plot_runs,
    plot_training_curves,
)


def test_draws_a_picture(tmp_path):
    lines = [
        f'{{"iteration": {i}, "total_loss": {100 / (i + 1)}, "loss_cls": NaN, "lr": 0.001, '
        f'"eta_seconds": 5.0, "segm/AP": {i / 10}, "segm/AP-car": 1.0}}'
        for i in range(0, 100, 5)
    ]
    (tmp_path / "metrics.json").write_text("\n".join(lines))
    plot_training_curves(tmp_path / "metrics.json", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        # 10 inches at 120 dots; 2.4 + 2 + 1.5 + 0.8 = 6.7 inches: one part of the loss is no part
        assert image.size == (1200, 804)
        colors = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0).tolist()
    assert [0x22, 0x22, 0x22] in colors  # text
    assert [0x00, 0x72, 0xB2] in colors  # losses, AP and learning rate


def test_validation_loss_is_drawn_in_the_color_of_its_training_loss(tmp_path):
    def colors(name: str) -> int:
        (tmp_path / "m.json").write_text(
            f'{{"iteration": 1, "{name}": 1}}\n{{"iteration": 99, "{name}": 2}}\n'
        )
        plot_training_curves(tmp_path / "m.json", tmp_path / "m.png")
        with Image.open(tmp_path / "m.png") as image:
            plot = np.asarray(image.convert("RGB"))[:, :800]
        return int((plot == (0x00, 0x72, 0xB2)).all(axis=2).sum())

    # Dashes leave gaps, so there is less of the same colour.
    assert 0 < colors("validation/loss_mask") < 0.9 * colors("loss_mask")


def test_stage_0_has_one_loss_and_a_mean_iou(tmp_path, figures):
    """As Detectron2 writes it: a single loss is the total, and may have its own name as well."""
    (tmp_path / "m.json").write_text(
        '{"iteration": 19, "lr": 1, "total_loss": 2}\n'
        '{"iteration": 99, "lr": 1, "total_loss": 1, "loss_sem_seg": 1, "validation/total_loss": 1,'
        ' "validation/loss_sem_seg": 1, "sem_seg/IoU": 15, "sem_seg/IoU-car": 44}\n'
        '{"iteration": 200, "sem_seg/IoU": 17, "sem_seg/iIoU": 9}\n'
    )
    plot_training_curves(tmp_path / "m.json", tmp_path / "m.png")
    rows = {
        axis.get_title("left"): [line.get_label() for line in axis.lines]
        for axis in figures[0].axes
    }
    assert rows == {
        "total loss": ["training", "validation"],
        "mean IoU, %": ["mean"],
        "learning rate": ["lr"],
    }
    assert figures[0].axes[1].lines[0].get_xydata().tolist() == [[99, 15], [200, 17]]


def test_keys_have_names_and_one_entry_a_colour(tmp_path, figures, assert_readable):
    """Not 12 entries of raw keys: what is dashed is said once."""
    losses = {"loss_cls": 1, "loss_box_reg": 2, "loss_mask": 1, "loss_rpn_cls": 1, "loss_new": 3}
    row = {"total_loss": 8, **losses}
    row |= {f"validation/{name}": value for name, value in row.items()}
    for task in ("segm", "coco_segm", "coco_bbox"):
        row |= {f"{task}/AP": 20, f"{task}/AP50": 40}
    lines = [json.dumps({"iteration": iteration, **row, "lr": 1e-4}) for iteration in (9, 19)]
    (tmp_path / "m.json").write_text("\n".join(lines))
    about = About(dataset="some_train", num_images=5, model="Mask R-CNN ResNet-50, output/run")
    plot_training_curves(tmp_path / "m.json", tmp_path / "m.png", about)
    assert_readable(figures[0])
    assert "some_train · 5 images · Mask R-CNN" in figures[0].texts[-1].get_text()
    entries = {
        axis.get_title("left"): (
            axis.get_title("right"),
            [text.get_text() for text in axis.get_legend().get_texts()],
        )
        for axis in figures[0].axes[:3]
    }
    assert entries == {
        "total loss": ("", ["training", "validation"]),
        "parts of the loss": (
            "dashed, hollow: validation",
            ["box position", "box class", "mask", "new", "RPN objectness"],
        ),
        "average precision, %": (
            "dashed, hollow: AP50",
            ["official masks", "COCO-style masks", "COCO-style boxes"],
        ),
    }


def titles(figure):
    return [axis.get_title("left") for axis in figure.axes]


def test_throughput_and_waiting(tmp_path, figures, assert_readable):
    """4 images in 0.5 s are 8 a second; of 0.5 s a tenth was waiting: 20 %."""
    entry = {"total_loss": 1.0, "time": 0.5, "data_time": 0.1}
    # In the first iterations of a run nothing is measured.
    lines = [{"iteration": 0, "total_loss": 2.0}, {"iteration": 19, **entry}]
    (tmp_path / "m.json").write_text("\n".join(map(json.dumps, lines)))
    plot_training_curves(tmp_path / "m.json", tmp_path / "m.png", None, 4)
    plot_training_curves(tmp_path / "m.json", tmp_path / "m.png")
    waiting = "waiting for data, % of an iteration"
    assert titles(figures[0]) == ["total loss", "throughput, images/s", waiting]
    assert titles(figures[1]) == ["total loss", waiting]  # the batch is not known
    speed, waited = (axis.lines[0].get_xydata().tolist() for axis in figures[0].axes[1:])
    assert (speed, waited) == ([[19, 8]], [[19, 20]])
    assert_readable(figures[0])


def test_ticks_are_plain_numbers(tmp_path, figures):
    """As of a training of one iteration that finds nothing."""
    row = {"iteration": 0, "total_loss": 2, "lr": 0.00012, "segm/AP": 0.0}
    (tmp_path / "m.json").write_text(json.dumps(row))
    plot_training_curves(tmp_path / "m.json", tmp_path / "m.png")
    rows = {axis.get_title("left"): axis for axis in figures[0].axes}

    def ticks(axis):
        return [label.get_text() for label in axis.get_ticklabels()]

    assert "0.00009" in ticks(rows["learning rate"].yaxis)
    # Not 1e-12.
    assert rows["average precision, %"].get_ylim() == (0, 1.08)
    low, high = rows["learning rate"].get_xlim()
    assert [tick for tick in rows["learning rate"].get_xticks() if low <= tick <= high] == [0, 1]


def test_losses_of_imitation_are_no_part_of_the_total_beside_that_of_validation(tmp_path, figures):
    curves = {
        "total_loss": {9: 5.0, 19: 3.0, 29: 2.0},
        "loss_distill_features": {9: 1.5, 19: 0.5},
        "loss_distill_classes": {9: 0.25},
        "loss_mask": {9: 3.25},
        "validation/total_loss": {19: 2.75},
    }
    plot_runs([Run(name="", curves=curves)], tmp_path / "a.png")
    drawn = [line.get_xydata().tolist() for line in figures[0].axes[0].lines]
    assert drawn == [[[9, 3.25], [19, 2.5], [29, 2.0]], [[19, 2.75]]]
    (gap,) = plot_overfitting({"a": curves}, tmp_path / "b.png").values()
    assert (gap.training, gap.validation) == (2.5, 2.75)


def test_several_runs_have_a_colour_each_in_all_rows(tmp_path, figures, assert_readable):
    one = {"total_loss": {9: 2.0, 19: 1.0}, "validation/total_loss": {19: 1.5}, "lr": {9: 1e-3}}
    one |= {"segm/AP": {20: 5.0}, "segm/AP50": {20: 9.0}, "coco_segm/AP": {20: 7.0}}
    two = {"total_loss": {9: 3.0}, "loss_mask": {9: 1.0}, "lr": {9: 1e-6}, "sem_seg/IoU": {10: 30}}
    runs = [Run(name="one", curves=one), Run(name="two", curves=two)]
    plot_runs(runs, tmp_path / "both.png")
    (figure,) = figures
    assert_readable(figure)
    blue, orange = "#0072B2", "#E69F00"
    drawn = {
        axis.get_title("left"): [(line.get_color(), line.get_linestyle()) for line in axis.lines]
        for axis in figure.axes
    }
    # The parts of the loss, and a second protocol, would be too many lines.
    assert drawn == {
        "total loss": [(blue, "-"), (blue, "--"), (orange, "-")],
        "average precision of official masks, %": [(blue, "-"), (blue, "--")],
        "mean IoU, %": [(orange, "-")],
        "learning rate": [(blue, "-"), (orange, "-")],
    }
    # Colours alone tell nothing to those who do not see them.
    markers = {line.get_color(): line.get_marker() for axis in figure.axes for line in axis.lines}
    assert markers == {blue: "o", orange: "s"}
    legends = [axis.get_legend() for axis in figure.axes]
    assert [text.get_text() for text in legends[0].get_texts()] == ["one", "two"]
    assert legends[1:] == [None] * 3
    # Rates a thousand times apart are both visible.
    assert figure.axes[-1].get_yscale() == "log"
    with pytest.raises(InputError, match="9 runs: at most 8 can be told apart"):
        plot_runs([runs[0]] * 9, tmp_path / "x.png")


def test_long_curves_of_several_runs_have_a_few_markers(tmp_path, figures):
    curves = {"total_loss": dict.fromkeys(range(100), 1.0)}
    plot_runs([Run(name=name, curves=curves) for name in "ab"], tmp_path / "both.png")
    plot_runs([Run(name="a", curves=curves)], tmp_path / "one.png")
    both, one = ([len(line.get_markevery()) for line in each.axes[0].lines] for each in figures)
    assert (one, both) == ([0], [8, 8])


def test_a_picture_of_several_runs_names_what_they_are(tmp_path):
    for name, train, images, meta in (
        ("stage_0", "coarse_train", 40, "SemanticSegmentor"),
        ("stage_1", "some_train", 8, "GeneralizedRCNN"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text('{"iteration": 3, "total_loss": 1.0}\n')
        (tmp_path / name / "summary.json").write_text(f'{{"images": {images}}}')
        (tmp_path / name / "config.yaml").write_text(
            f"DATASETS: {{TRAIN: [{train}], TEST: [some_test], VAL: [some_val]}}\n"
            f"MODEL: {{META_ARCHITECTURE: {meta}, MASK_ON: true, RESNETS: {{DEPTH: 50}}, "
            "SEM_SEG_HEAD: {NAME: DeepLabV3}, BACKBONE: {NAME: build_resnet_backbone}}\n"
        )
    runs = find_runs([tmp_path])
    protocol = "training loss of the batches, evaluated on some_val"
    assert str(runs[1].about) == (
        f"some_train · 8 images · Mask R-CNN ResNet-50, {tmp_path}/stage_1 · {protocol}"
    )
    assert str(about_runs(runs)) == (
        "coarse_train: 40 images; some_train: 8 images · "
        f"DeepLabv3 ResNet-50 (stage_0), Mask R-CNN ResNet-50 (stage_1) · {protocol}"
    )


def test_the_picture_of_all_runs_replaces_that_of_none(tmp_path):
    runs = [Run(name=name, curves={"total_loss": {9: 2.0}}) for name in ("a/one", "comparison")]
    (file,) = plot_each_run(runs[:1], tmp_path)
    assert file == tmp_path / "a-one.png"
    assert file.stat().st_size > 1000
    with pytest.raises(InputError, match="a run called comparison"):
        list(plot_each_run(runs, tmp_path))
    alike = [Run(name=name, curves=runs[0].curves) for name in ("a/one", "a-one")]
    with pytest.raises(InputError, match="a/one and a-one: their pictures would have one name"):
        list(plot_each_run(alike, tmp_path))
    # Alone it has no other picture beside it.
    assert list(plot_each_run(runs[1:], tmp_path)) == [tmp_path / "comparison.png"]


def test_runs_are_named_by_their_folders(tmp_path):
    for name in ("a/stage_1", "a/stage_2", "b/stage_1"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.json").write_text('{"iteration": 3, "total_loss": 1.0}\n')
    (tmp_path / "a" / "stage_3").mkdir()
    (tmp_path / "a" / "stage_3" / "metrics.json").touch()  # it has just begun
    (tmp_path / "a/stage_1/config.yaml").write_text("SOLVER: {IMS_PER_BATCH: 4}\n")
    (tmp_path / "a/stage_2/config.yaml").write_text("DATASETS: {TRAIN: [some_train]}\nSOLVER: 1\n")
    (tmp_path / "a/stage_2/summary.json").write_text('{"images": 8, "generated": true}')
    runs = find_runs([tmp_path / "a", tmp_path / "b" / "stage_1"])
    assert [run.name for run in runs] == ["a/stage_1", "stage_2", "b/stage_1"]
    assert [run.batch_size for run in runs] == [4, None, None]
    assert str(runs[1].about) == (
        f"GENERATED SCENES, not Cityscapes · some_train · 8 images · {tmp_path}/a/stage_2 · "
        "training loss of the batches"
    )


def test_runs_in_folders_of_one_name_have_a_picture_each(tmp_path):
    folders = [tmp_path / name for name in ("a/recipe/stage_1", "b/recipe/stage_1", "b/stage_2")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text('{"iteration": 3, "total_loss": 1.0}\n')
    runs = find_runs(folders)
    assert [run.name for run in runs] == ["a/recipe/stage_1", "b/recipe/stage_1", "stage_2"]
    assert [file.name for file in plot_each_run(runs, tmp_path / "pictures")] == [
        *("a-recipe-stage_1.png", "b-recipe-stage_1.png", "stage_2.png", "comparison.png")
    ]


def test_a_run_in_the_folder_of_another_of_its_name(tmp_path):
    folders = [tmp_path / "run", tmp_path / "run" / "old" / "run"]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text('{"iteration": 3, "total_loss": 1.0}\n')
    assert [run.name for run in find_runs(folders)] == ["run", "run/old/run"]


def test_a_run_that_is_named_twice_is_one_run(tmp_path, monkeypatch):
    for stage in ("stage_1", "stage_2"):
        (tmp_path / "a" / stage).mkdir(parents=True)
        (tmp_path / "a" / stage / "metrics.json").write_text('{"iteration": 3, "total_loss": 1}\n')
    (tmp_path / "link").symlink_to("a/stage_1")
    monkeypatch.chdir(tmp_path)
    runs = find_runs(["a", "a/stage_1/../stage_1", "link"])
    assert [run.name for run in runs] == ["stage_1", "stage_2"]


@pytest.mark.parametrize("content", ["", '{"iteration": 3, "time": 1.0}\n', "\x00\x01"])
def test_nothing_to_draw(tmp_path, content):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(InputError, match=r"metrics\.json: no loss"):
        plot_training_curves(tmp_path / "metrics.json", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
    (tmp_path / "metrics.json").unlink()
    with pytest.raises(InputError, match=r"metrics\.json: cannot be read"):
        plot_training_curves(tmp_path / "metrics.json", tmp_path / "curves.png")
