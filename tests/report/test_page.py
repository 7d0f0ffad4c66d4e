from __future__ import annotations

import csv
import io
import json
import re
import shlex
import shutil
from base64 import b64decode
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cityscapes_maskrcnn.data.provenance import SEEN_IMAGES_KEY
from cityscapes_maskrcnn.report.inline_pictures import inline_picture
from cityscapes_maskrcnn.report.page import MAX_BYTES, write_report
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.visualization.outcome_drawing import draw_outcomes
from cityscapes_maskrcnn.visualization.outlines import Edge

HOSTILE = "\"><script>alert('x')</script><img src=x onerror=alert(1)>&amp;{{ 7 * 7 }}\u202e"


class Page(HTMLParser):
    """Text of each section by its id, tables by their captions, and elements by their tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.sections: dict[str, str] = {"": ""}
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self._section = self._caption = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "input", "wbr"):
            self._open.append(tag)
        if tag == "section":
            self._section = dict(attrs)["aria-labelledby"] or ""
            self.sections[self._section] = ""
        elif tag == "caption":
            self._caption = ""
        elif tag == "tr":
            self.tables[self._caption].append([])
        elif tag in ("td", "th"):
            self.tables[self._caption][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        # What a text from outside closes would be found here.
        assert self._open.pop() == tag
        if tag == "section":
            self._section = ""
        elif tag == "caption":
            self.tables[self._caption] = []

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("script", "style"):
            return
        self.sections[self._section] += data
        if "caption" in self._open:
            self._caption += data
        elif {"td", "th"} & {*self._open}:
            self.tables[self._caption][-1][-1] += data


def report(run: Path, output: Path) -> Page:
    write_report(run, output)
    return Page(output.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return report(finished_run, tmp_path_factory.mktemp("page") / "report.html")


def test_the_headline_is_the_last_scored_stage(page: Page) -> None:
    top = " ".join(page.sections[""].split())
    assert "Mask R-CNN ResNet-50 on generated streets" in top
    assert "stage 3 refined, reaches an official mask AP of 13.0 % on 24 generated images" in top
    done = "the backbone was trained on semantic labels, the instance heads were trained"
    assert f"A run of the recipe: {done}" in top
    assert "official mask AP 13.0 % val parts 3-4 of 4, 24 images" in top
    assert "COCO-style AP 18.2 %" in top
    # 4 x 400 s.
    assert "27 min 4 stages with their evaluations, without the search" in top


def test_warnings_in_plain_words(page: Page) -> None:
    warnings = page.sections["warnings"]
    for expected in (
        "generated drawings of streets, not Cityscapes",
        "on 24 images, which is few: one object more or less changes the AP",
        "The last stage is not the best: stage 2 tuned has an official AP of 14.5 %, stage 3",
        "tuned on cityscapes_instance_val_part1of4",
        "The search completed 2 trials, too few",
        "The scores are of one training with one seed",
    ):
        assert expected in warnings
    # It started from weights that were trained, and is complete.
    assert "random weights" not in warnings
    assert "not complete" not in warnings


def test_scores_name_their_protocol(page: Page) -> None:
    heading, *rows = page.tables["Mask AP in percent, by stage and protocol"]
    assert heading[2:5] == ["Official AP", "Official AP50", "COCO-style AP"]
    assert rows[1] == [
        *("2 tuned", "val parts 3-4 of 4, 24 generated images", "14.5", "29.0"),
        # No large objects: no score, and not a zero.
        *("20.3", "36.2", "3.0", "20.0", "-", "25.0"),
    ]
    assert "mean IoU is 30.0 %" in page.sections["results"]  # (20 + 399 / 40)


def test_the_table_can_be_downloaded(page: Page) -> None:
    (link,) = [attributes for tag, attributes in page.tags if "download" in attributes]
    assert link["download"] == "performance.csv"
    address = link["href"]
    assert address
    text = b64decode(address.partition(",")[2]).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["official_AP"] for row in rows[:4]] == ["", "11.25", "14.5", "13.0"]


def test_classes_and_errors(page: Page) -> None:
    heading, *rows = page.tables["Stage 3 refined by class"]
    assert heading[3:] == ["Objects", "Found", "Missed", "False positives"]
    assert rows[2] == ["car", "5.0", "10.0", "10", "2", "8", "2"]
    assert rows[5] == ["train", "-", "-", "0", "0", "0", "1"]
    # Found: 0 + 1 + 2 + 3 + 4 + 6 + 7. False: 7 x 2 + 1.
    assert "Of 70 objects, stage 3 refined finds 23 (33 %)" in page.sections["errors"]
    assert "Of its 38 detections 15 are false" in page.sections["errors"]
    assert "4 of 9 objects of class bus are detected as truck" in page.sections["errors"]
    misses = page.tables["Missed objects by size and occlusion"]
    # 8 classes of 10 objects, 3 of them missed.
    assert misses[1] == ["small (< 32² px)", "80", "24", "30 %"]


def test_what_was_trained_on_what(page: Page) -> None:
    data = "generated streets of 128 x 256 pixels, seed 7: train 240, val 48 images"
    assert data in page.sections["training"]
    _, first, second, *_ = page.tables["Training of each stage"]
    expected = ["240", "3.33", "400", "0.002", "2", "20.5 M", "400 s", "3.0 GiB RAM", "complete"]
    assert first == ["0 backbone", "torchvision://deeplabv3_resnet50", "train", *expected]
    assert second == ["1 heads", "stage 0 backbone", "train", *expected]
    labels = [attributes.get("aria-label") or "" for tag, attributes in page.tags if tag == "svg"]
    losses = [label for label in labels if label.startswith("Total loss")]
    assert len(losses) == 4
    # Means of neighbours; 2.4 / (1 + 3.99) + 0.5 at the end.
    assert losses[0].endswith("; validation: 1.71 at iteration 99, 0.981 at 399")


def test_weights_of_another_run_are_no_stage_of_this_one(
    finished_run: Path, tmp_path: Path
) -> None:
    other, old = tmp_path / "other" / "stage_0" / "model_final.pth", tmp_path / "old"
    run = shutil.copytree(finished_run, tmp_path / "run")
    for name, weights in (("stage_1", other), ("stage_2", old / "stage_1" / "model_final.pth")):
        config = yaml.safe_load((run / name / "config.yaml").read_text())
        config["MODEL"]["WEIGHTS"] = str(weights)
        # Where it was trained; the folder was moved since.
        config["OUTPUT_DIR"] = str(old / name)
        (run / name / "config.yaml").write_text(yaml.safe_dump(config))
    page = report(run, tmp_path / "report.html")
    rows = page.tables["Training of each stage"]
    assert [row[1] for row in rows[2:4]] == [str(other), "stage 1 heads"]


def test_generated_images_that_a_model_has_seen_are_called_so(
    finished_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    file = run / "stage_3" / "model_final.pth"
    content = torch.load(file, weights_only=True)
    content[SEEN_IMAGES_KEY][0]["generated"] = True
    torch.save(content, file)
    provenance = report(run, tmp_path / "report.html").sections["provenance"]
    assert provenance.count("trained on 1 generated image of cityscapes_instance_train") == 1
    assert provenance.count("trained on 1 image of cityscapes_instance_train") == 3


def test_anchors_search_and_drift(page: Page) -> None:
    assert "Sizes 10, 31.5 px" in page.sections["anchors"]
    assert "The mean best IoU changes from 0.20 to 0.75." in page.sections["anchors"]
    assert page.tables["Best overlap of an anchor with each box"][1][:4] == [
        *("all boxes", "115", "0.20", "0.75"),
    ]
    heading, *trials = page.tables["Trials, the best first"]
    assert heading == ["Trial", "State", "Official mask AP, %", "fg_iou_thresh", "Time", "Reason"]
    assert trials[0] == ["2", "complete", "12.50", "0.45", "60 s", "-"]
    assert trials[2] == ["1", "failed", "-", "0.7", "3 s", "loss is NaN "]
    drift = page.tables["Stage 0 backbone: distance from its start"]
    assert drift[2] == ["res2", "1 %", "50 %"]


def test_provenance_and_commands(page: Page, finished_run: Path) -> None:
    repeat = page.sections["repeat"]
    assert (
        f"python datasets/make_synthetic_cityscapes.py {finished_run}/data --train 240 --val 48 "
        "--height 128 --width 256 --seed 7"
    ) in repeat
    assert f"export DETECTRON2_DATASETS={finished_run}/data" in repeat
    assert f"python tools/train_stages.py --output '{finished_run}'" in repeat
    assert f"python tools/train_net.py OUTPUT_DIR {finished_run}/stage_1" in repeat
    provenance = page.sections["provenance"]
    assert "trained on 1 image of cityscapes_instance_train" in provenance
    assert "torch 2.14.1; detectron2 0.6" in provenance
    assert f"--model {finished_run}/stage_3/model_final.pth" in page.sections["next"]


def test_the_page_needs_no_other_file(page: Page) -> None:
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            address = attributes.get(name) or ""
            assert address.startswith(("data:", "#")) or not address, (tag, address)
        # Styles and handlers in attributes are forbidden by the policy of the page.
        assert not [name for name in attributes if name == "style" or name.startswith("on")]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len({*ids})
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert {link[1:] for link in links if link and link[0] == "#"} <= {*ids}
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert pictures
    assert all(each["alt"] and each["width"] and each["height"] for each in pictures)


def test_what_is_not_counted_is_said_beside_the_examples(page: Page) -> None:
    examples = page.sections["examples"]
    assert (
        "Objects below 100 pixels, groups (hatched: several objects in one outline), and "
        "detections on these or on void are not"
    ) in examples
    assert "An image without counted objects has no AP." in examples
    assert "Objects below 100 pixels and groups are not counted." in page.sections[""]
    legend = " ".join(examples.split())
    assert "Ground truth: found missed not counted group, not counted Prediction: found" in legend
    # Three pictures, the first of them once more at the top: their own legend is cut off.
    assert examples.count("GENERATED SCENE") == 2
    assert page.sections[""].count("GENERATED SCENE") == 1


def test_lines_break_within_long_names(finished_run: Path, tmp_path: Path) -> None:
    write_report(finished_run, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "torchvision://<wbr>deeplabv3_<wbr>resnet50" in text


def test_texts_from_outside_are_escaped(make_run: Callable[..., Path], tmp_path: Path) -> None:
    """Classes, datasets, images, captions, commands, versions, reasons, and the run's name."""
    run = make_run(tmp_path / "a <b>'run'", HOSTILE.replace("/", "_"))
    page = report(run, tmp_path / "report.html")
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 1
    assert "b>'run'" not in tags
    assert not [attributes for _, attributes in page.tags if "onerror" in attributes]
    bicycle = page.tables["Stage 3 refined by class"][8][0]
    assert bicycle.startswith("bicycle\"><script>alert('x')<_script><img src=x onerror=")
    for section in ("examples", "errors", "anchors", "search", "repeat", "provenance", "warnings"):
        assert "<script>alert('x')<_script>" in page.sections[section]
    # Not a template, and not invisible.
    assert "{{ 7 * 7 }}\\u202e" in page.sections["examples"]
    assert "\u202e" not in (tmp_path / "report.html").read_text()


def test_a_run_on_real_images(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for path in [*run.glob("*/summary.json"), *run.glob("scores/*/scores.json")]:
        text = path.read_text().replace('"generated": true', '"generated": false')
        path.write_text(text.replace('"images": 24', '"images": 250'))
    (run / "data" / "cityscapes" / "synthetic.json").unlink()
    scores = run / "scores" / "stage_3" / "scores.json"
    content = json.loads(scores.read_text())
    seen = "125 of the 250 images of val were tuned on"
    scores.write_text(json.dumps({**content, "seen": [seen]}))
    page = report(run, tmp_path / "report.html")
    top = " ".join(page.sections[""].split())
    assert "Mask R-CNN ResNet-50 on Cityscapes" in top
    assert "AP of 13.0 % on 250 images, which the model had seen before" in top
    warnings = page.sections["warnings"]
    assert "generated" not in warnings
    assert f"scored on images that it had seen, so its score is too high: {seen}." in warnings
    assert "250 images, not on all 500 as published scores are: other images" in warnings
    assert "read its licence before you share it" in warnings
    (scored,) = content["datasets"].values()
    content["datasets"] = {"my_val": scored}
    scores.write_text(json.dumps(content))
    own = report(run, tmp_path / "own.html").sections["warnings"]
    assert "250 images, which is not many: other images would change the AP" in own
    assert "published" not in own
    config = run / "stage_3" / "config.yaml"
    config.write_text(config.read_text().replace("cityscapes_instance_train", "my_streets"))
    assert " on own data " in " ".join(report(run, tmp_path / "own.html").sections[""].split())


def test_a_drift_without_statistics(make_run: Callable[..., Path], tmp_path: Path) -> None:
    """As of a backbone with GroupNorm, which has none."""
    run = make_run(tmp_path / "run")
    table = run / "stage_0" / "drift.csv"
    table.write_text(table.read_text().replace("0.02,0.5", "0.02,nan"))
    page = report(run, tmp_path / "report.html")
    rows = page.tables["Stage 0 backbone: distance from its start"]
    assert rows[1:3] == [["stem", "0 %", "-"], ["res2", "1 %", "-"]]


def test_own_data_are_not_called_cityscapes(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for path in [*run.glob("*/summary.json"), *run.glob("scores/*/scores.json")]:
        path.write_text(path.read_text().replace('"generated": true', '"generated": false'))
    (run / "data" / "cityscapes" / "synthetic.json").unlink()
    config = run / "stage_3" / "config.yaml"
    content = yaml.safe_load(config.read_text())
    content["DATASETS"] = {"TRAIN": ["cityscapes_lamps"], "OWN": {"cityscapes_lamps": {}}}
    config.write_text(yaml.safe_dump(content))
    assert " on own data " in " ".join(report(run, tmp_path / "own.html").sections[""].split())


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    """Of a run that has just begun."""
    (tmp_path / "run" / "stage_0").mkdir(parents=True)
    (tmp_path / "run" / "recipe.json").write_text('{"datasets": ""}')
    page = report(tmp_path / "run", tmp_path / "report.html")
    for section, expected in {
        "warnings": "The run is not complete. Not done: stage 0 backbone, stage 1 heads, anchors",
        "results": "No stage has been scored yet",
        "examples": "No pictures were drawn",
        "errors": "No errors were analysed",
        "training": "No metrics have been logged yet",
        "anchors": "No anchors were fitted",
        "search": "No search",
        "drift": "No drift was measured",
        "repeat": "The command of the recipe was not recorded",
        "provenance": "No checkpoint is in the run's folder",
    }.items():
        assert expected in page.sections[section]
    assert "0 of its 9 steps are done; nothing is scored yet" in page.sections[""]
    assert f"python tools/train_stages.py --output {tmp_path}/run" in page.sections["next"]


@pytest.mark.parametrize(
    "name",
    [
        *("scores", "search", "anchors", "gallery", "recipe.json", "data", "stage_0", "stage_1"),
        *("stage_2/model_final.pth", "stage_3/metrics.json", "stage_3/config.yaml"),
        *("stage_3/summary.json", "scores/stage_3/inference", "search/best.yaml"),
    ],
)
def test_any_part_may_be_missing(finished_run: Path, tmp_path: Path, name: str) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    path = run / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "Results" in report(run, tmp_path / "report.html").sections["results"]


def test_a_run_of_a_part_is_complete_without_the_rest(finished_run: Path, tmp_path: Path) -> None:
    """The run without coarse data, which docs/recipe.md shows, then one of a step of it."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    shutil.rmtree(run / "stage_0")
    names = ["stage_1", "anchors", "search", "stage_2", "stage_3"]
    names += [f"scores/stage_{number}" for number in (1, 2, 3)]
    calls = ["train_stages --stages stage_1 anchors search stage_2 stage_3", "train_stages more"]
    recipe = {"commands": calls, "selected": names, "datasets": str(finished_run / "data")}
    (run / "recipe.json").write_text(json.dumps(recipe))
    page = report(run, tmp_path / "report.html")
    top = " ".join(page.sections[""].split())
    assert (
        "A run of part of the recipe: the instance heads were trained, anchors were fitted to the "
        "data, thresholds were searched, the heads were trained with tuned settings and the whole "
        "network was fine-tuned. The final model, stage 3 refined,"
    ) in top
    assert "not complete" not in page.sections["warnings"]
    assert "Finish the run" not in page.sections["next"]
    for call in calls:
        assert call in page.sections["repeat"]
    for name in ("anchors", "search", "stage_3", "scores/stage_3"):
        (run / name / "complete.json").unlink()
    page = report(run, tmp_path / "report.html")
    assert (
        "Not done: anchors, search, stage 3 refined, scores of stage 3 refined."
    ) in page.sections["warnings"]
    assert (
        "A run of part of the recipe: the instance heads were trained and the heads were trained "
        "with tuned settings."
    ) in " ".join(page.sections[""].split())
    for call in calls:
        assert call in page.sections["next"]


def test_stages_that_the_recipe_did_not_train(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("config.yaml", "metrics.json", "model_final.pth"):
        (run / "stage_1").mkdir(parents=True, exist_ok=True)
        shutil.copy(finished_run / "stage_1" / name, run / "stage_1")
    (run / "anchors").mkdir()
    (run / "anchors" / "anchors.yaml").touch()
    page = report(run, tmp_path / "report.html")
    assert (
        "Stages that were trained without tools/train_stages.py: the instance heads were trained "
        "and anchors were fitted to the data. Nothing is scored yet."
    ) in " ".join(page.sections[""].split())
    assert "not complete" not in page.sections.get("warnings", "")
    assert "Finish the run" not in page.sections["next"]
    assert page.tables["Training of each stage"][1][-1] == "complete"


def test_a_single_training_is_no_run(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run of the recipe.*tools/plot_training\.py draws$"):
        write_report(finished_run / "stage_1", tmp_path / "report.html")
    with pytest.raises(InputError, match=r"name the --output of tools/train_stages\.py$"):
        write_report(tmp_path, tmp_path / "report.html")


def test_yaml_and_commands_keep_their_spaces(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    best = "DATASETS:\n  TUNED_ON:\n    - val  # \u202etwo\u00a0spaces\n"
    (run / "search" / "best.yaml").write_text(best, encoding="utf-8")
    recipe = {"commands": ["python a.py 'my  run'"], "datasets": ""}
    (run / "recipe.json").write_text(json.dumps(recipe))
    page = report(run, tmp_path / "report.html")
    expected = "DATASETS:\n  TUNED_ON:\n    - val  # \\u202etwo\\xa0spaces\n"
    assert expected in page.sections["search"]
    assert "python a.py 'my  run'" in page.sections["repeat"]


def test_commands_are_for_a_shell_in_the_project(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run")
    words = ["/home/me/project/.venv/bin/python", "/home/me/project/tools/train_net.py"]
    words += ["--resume", "INCLUDE", "('output/anchors.yaml',)", "NAME", "it's $5", "/home/data"]
    for name in ("stage_0", "stage_1", "stage_2", "stage_3"):
        file = run / name / "inputs.json"
        content = {**json.loads(file.read_text()), "commands": [shlex.join(words)]}
        file.write_text(json.dumps(content))
    page = report(run, tmp_path / "report.html")
    assert (
        ".venv/bin/python tools/train_net.py --resume INCLUDE \"('output/anchors.yaml',)\" "
        f"NAME {shlex.quote(words[-2])} /home/data"
    ) in page.sections["repeat"]
    assert ".venv/bin/python tools/train_stages.py --output" in page.sections["repeat"]
    assert ".venv/bin/python tools/predict.py --model" in page.sections["next"]
    # An interpreter of another place is none that a reader has.
    other = [shlex.join(["/usr/bin/python3", *words[1:]])]
    for name in ("stage_0", "stage_1", "stage_2", "stage_3"):
        file = run / name / "inputs.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "commands": other}))
    following = report(run, tmp_path / "report.html").sections["next"]
    assert "\npython tools/predict.py --model" in following.replace("\n\n", "\n")


def test_stage_0_alone_is_no_mask_r_cnn(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    for name in ("stage_1", "stage_2", "stage_3", "scores"):
        shutil.rmtree(run / name)
    page = report(run, tmp_path / "report.html")
    assert "DeepLabv3 ResNet-50 on generated streets" in " ".join(page.sections[""].split())


def test_pictures_without_a_gallery(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / "gallery").rename(run / "pictures")
    (run / "pictures" / "lindau_gt.png").rename(run / "pictures" / "<b onclick=x>'\".png")
    page = report(run, tmp_path / "report.html")
    assert "the first 4 of 4 pictures" in page.sections["examples"]
    assert "<b onclick=x>'\".png" in page.sections["examples"]
    assert not [attributes for _, attributes in page.tags if "onclick" in attributes]


def test_random_weights_have_no_drift(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    config = run / "stage_0" / "config.yaml"
    config.write_text(config.read_text().replace("torchvision://deeplabv3_resnet50", "''"))
    page = report(run, tmp_path / "report.html")
    assert "has no meaning and is not shown" in page.sections["drift"]
    assert "Training started from random weights" in page.sections["warnings"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gallery/gallery.json", "{", "cannot be read"),
        ("anchors/anchors.json", '{"boxes": 3}', "has no default and fitted"),
        ("search/trials.csv", "trial,state\n1,complete\n", "a line without value; another"),
        (
            "search/trials.csv",
            "trial,state,value,seconds\n1,complete,3\n",
            "a line without seconds; another",
        ),
        (
            "search/trials.csv",
            "trial,state,value\n1,complete,3,4\n",
            "a line has more columns than the first; another",
        ),
        (
            "search/trials.csv",
            "trial,state,value,seconds\n1,complete,many,3\n",
            "trials.csv: damaged",
        ),
        ("scores/stage_3/inference/analysis/misses.csv", "class\ncar\n", "a line without by and"),
        ("anchors/anchors.png", "no picture", "no picture that can be read"),
        ("stage_2/model_final.pth", "no checkpoint", "model_final.pth"),
    ],
)
def test_a_damaged_file_gets_one_line(
    finished_run: Path, tmp_path: Path, name: str, text: str, message: str
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / name).write_text(text)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        write_report(run, tmp_path / "report.html")
    assert Path(name).name in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_a_gallery_shows_no_files_of_other_folders(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    gallery = run / "gallery" / "gallery.json"
    content = json.loads(gallery.read_text())
    content["examples"][0]["gt"] = "../anchors/anchors.png"
    gallery.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"\.\./anchors/anchors\.png is not a file beside it"):
        write_report(run, tmp_path / "report.html")


def test_headline_and_errors_are_of_the_same_dataset(finished_run: Path, tmp_path: Path) -> None:
    """Of the first one, wherever its name is in the alphabet."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    file = run / "scores" / "stage_3" / "scores.json"
    content = json.loads(file.read_text())
    (scored,) = content["datasets"].values()
    better = {"segm": {"AP": 77.0}}
    content["datasets"] = {"z_val": scored, "a_val": {**scored, "results": better}}
    file.write_text(json.dumps(content))
    analysis = run / "scores" / "stage_3" / "inference" / "analysis"
    for name, count in (("z_val", "7"), ("a_val", "8")):
        folder = analysis.parent / name / "analysis"
        shutil.copytree(analysis, folder)
        table = (folder / "per_class.csv").read_text()
        (folder / "per_class.csv").write_text(table.replace(",10,0,10,", f",{count},0,{count},"))
    shutil.rmtree(analysis)
    page = report(run, tmp_path / "report.html")
    assert "official mask AP of 13.0 %" in " ".join(page.sections[""].split())
    assert page.tables["Stage 3 refined by class"][1][3] == "7"


def test_a_model_is_final_only_if_it_is_of_the_last_stage(
    finished_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    shutil.rmtree(run / "scores" / "stage_3")
    page = report(run, tmp_path / "report.html")
    assert "The last scored model, stage 2 tuned, reaches" in " ".join(page.sections[""].split())


def test_what_only_a_mouse_would_show_is_said(page: Page) -> None:
    assert (
        "Official AP: mean over IoU 0.50 to 0.95 and classes. Official AP50: at IoU 0.50."
    ) in page.sections["results"]
    sliders = [attributes for tag, attributes in page.tags if tag == "input"]
    assert sliders
    assert all(each["aria-valuetext"] == "50 % ground truth" for each in sliders)


def test_many_pictures_fit(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise hardly compresses: 16 examples of it would be 1.4 MB."""
    assert MAX_BYTES == 8_000_000
    monkeypatch.setattr("cityscapes_maskrcnn.report.page.MAX_BYTES", 400_000)
    run = shutil.copytree(finished_run, tmp_path / "run")
    noise = np.random.default_rng(0).integers(0, 256, (250, 500, 3), np.uint8)
    Image.fromarray(noise).save(run / "gallery" / "noise.png")
    gallery = run / "gallery" / "gallery.json"
    content = json.loads(gallery.read_text())
    for number in range(20):
        picture = f"noise_{number}.png"
        (run / "gallery" / picture).hardlink_to(run / "gallery" / "noise.png")
        example = {**content["examples"][0], "gt": picture, "pred": "noise.png"}
        content["examples"].append(example)
    gallery.write_text(json.dumps(content))
    page = report(run, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size <= 400_000
    assert "6 more are in the run's folder gallery" in page.sections["examples"]
    # What even no picture would make small enough.
    monkeypatch.setattr("cityscapes_maskrcnn.report.page.MAX_BYTES", 1000)
    with pytest.raises(InputError, match="its report is larger than 1,000 bytes"):
        write_report(run, tmp_path / "none.html")


def test_pictures_are_scaled_down_and_small(tmp_path: Path) -> None:
    Image.new("RGB", (2000, 1000), (10, 200, 30)).save(tmp_path / "green.png")
    picture = inline_picture(tmp_path / "green.png", 500)
    assert (picture.width, picture.height) == (500, 250)
    content = b64decode(picture.src.removeprefix("data:image/webp;base64,"))
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.size) == ("WEBP", (500, 250))
        # A drawing loses nothing.
        assert image.convert("RGB").getpixel((3, 3)) == (10, 200, 30)


def test_a_drawing_that_is_scaled_down_loses_nothing(tmp_path: Path) -> None:
    """Whether it is one is decided before its colours are mixed."""
    y, x = np.mgrid[:300, :900]
    # 216 colours, whose mixtures are more than 4,096.
    places = (x // 2 * 7 + y // 2 * 13) % 216
    colors = np.stack([places % 6, places // 6 % 6, places // 36], axis=2) * 51
    Image.fromarray(colors.astype(np.uint8)).save(tmp_path / "drawn.png")
    picture = inline_picture(tmp_path / "drawn.png", 700)
    content = b64decode(picture.src.removeprefix("data:image/webp;base64,"))
    # A lossless file has a part of this name.
    assert b"VP8L" in content[:40]


def test_a_picture_without_its_legend(tmp_path: Path) -> None:
    street = np.full((50, 100, 3), 90, np.uint8)
    edges = {"found": Edge("#ffffff")}
    drawn = draw_outcomes(street, [], edges, "Ground truth", "GENERATED SCENE")
    Image.fromarray(drawn).save(tmp_path / "drawn.png")
    picture = inline_picture(tmp_path / "drawn.png", 5000, with_legend=False)
    # Enlarged to a width of 1,024.
    assert (picture.width, picture.height) == (1024, 512)
