"""Every command and every code block of the documents, run or parsed as its mark says.

A fenced block begins with its language and at most one mark; CONTRIBUTING.md describes them. Runs
are on the small generated data set; below ``output/``, a checkpoint that no block of the page has
made is one of the tiny network's, and a file of INCLUDE sets thresholds alone.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shlex
import shutil
import subprocess
from ast import literal_eval
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import pytest
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

import cityscapes_maskrcnn
from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.recipe.stage_table import STEPS
from cityscapes_maskrcnn.utils.errors import InputError

PROJECT = Path(__file__).parents[2]
README = PROJECT / "README.md"
PAGES = [
    README,
    PROJECT / "CONTRIBUTING.md",
    *sorted(PROJECT.glob("docs/*.md")),
    *(PROJECT / folder / "README.md" for folder in ("configs", "datasets", "tools")),
]
# Marks by language; None: no mark.
MARKS = {
    "bash": (None, "tiny", "parsed", "not-run"),
    "python": (None, "not-run"),
    "yaml": (None, "file"),
    "text": (None,),
}
SETUP = (PROJECT / "setup.py").read_text()
# cityscapes-train: tools/train_net.py.
COMMANDS = {
    f"cityscapes-{name}": next(PROJECT.glob(f"*/{script}.py")).relative_to(PROJECT).as_posix()
    for name, script in re.findall(
        r'"([\w-]+)": "(\w+)"', SETUP.partition("COMMANDS = ")[2].partition("}")[0]
    )
}
TINY = (PROJECT / "tests" / "tiny_network.txt").read_text().split()

# For trainings with the config.yaml of a run.
SHORT = """
SOLVER: {EPOCHS: 0, MAX_ITER: 2, CHECKPOINT_EPOCHS: 0}
TEST: {EVAL_EPOCHS: 0, EVAL_PERIOD: 0, VALIDATION_LOSS: False}
"""
# What following a page leaves behind.
OUTPUTS = {
    "docs/deployment.md": ["output/onnx/model.json"],
    "docs/extending.md": [
        "output/lamps/inference/coco_instances_results.json",
        "output/depthwise/model_final.pth",
        "output/plain/model_final.pth",
        "output/stage_4/model_final.pth",
    ],
    "docs/faq.md": ["output/small_gpu/model_final.pth"],
    "docs/python.md": ["street_predictions.png", "output/python/model_final.pth"],
    "docs/recipe.md": ["output/anchors/anchors.png", "report.html"],
    "docs/tracking.md": ["output/shared/model.safetensors"],
    "docs/usage.md": [
        "output/stage_1/training_curves.png",
        "output/people_and_cars/model_final.pth",
        "output/stage_1_val/inference/analysis/per_class.csv",
        "output/curves/stage_1.png",
        "output/gallery/index.md",
        "output/val.zip",
        "output/submission.zip",
    ],
    "tools/README.md": ["output/data/report.md", "drawn.mp4"],
}

Run = Callable[..., subprocess.CompletedProcess[str]]


@dataclass
class Block:
    """A fenced block of a page: ```language mark="value"."""

    place: str
    language: str
    mark: str | None
    value: str
    text: str

    def commands(self) -> Iterator[list[str]]:
        """Split lines into words, with variables, without comments; a ``\\`` continues a line."""
        for line in self.text.replace("\\\n", " ").splitlines():
            for command in line.split(" && "):
                words = [os.path.expandvars(word) for word in shlex.split(command, comments=True)]
                if words:
                    yield words


def blocks_of(page: Path) -> list[Block]:
    name = page.relative_to(PROJECT).as_posix()
    found, text = [], page.read_text()
    pattern = r"^( *)```(\w*)(?: +([\w-]+)=\"([^\"]*)\")?(.*)\n((?:.*\n)*?) *```$"
    for match in re.finditer(pattern, text, re.MULTILINE):
        place = f"{name}:{text[: match.start()].count(chr(10)) + 1}"
        indent, language, mark, value, rest, code = match.groups(default="")
        assert not rest, f'{place}: a fence is ```LANGUAGE or ```LANGUAGE MARK="...", not {rest!r}'
        code = re.sub(f"^{indent}", "", code, flags=re.MULTILINE)
        found.append(Block(place, language, mark or None, value, code))
    assert 2 * len(found) == len(re.findall(r"^ *```", text, re.MULTILINE)), f"{name}: odd fences"
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_every_block_has_a_known_mark(page: Path) -> None:
    for block in blocks_of(page):
        assert block.mark in MARKS.get(block.language, ()), (
            f"{block.place}: unknown block: ```{block.language} {block.mark or ''}"
        )
        assert block.mark is None or block.value or block.mark == "tiny", f"{block.place}: why?"


class ParsedError(Exception):
    """A tool's parser has accepted its command line."""


class Reader:
    """Does what a reader of one page does, block by block, in a copy of the project's folder."""

    def __init__(self, tool: Run, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tool = tool
        self.trained = trained
        self.monkeypatch = monkeypatch
        self.names: dict[str, object] = {}

    def follow(self, block: Block) -> None:
        if block.mark == "not-run" or block.language == "text":
            return
        if block.language == "python":
            text = block.text
            for name, value in re.findall(r"^(\w+) = \"([^\"]*)\"$", text, re.MULTILINE):
                text = text.replace(f"{{{name}}}", value)
            self.provide(re.findall(r"\"([^\"]*)\"", text))
            exec(compile(block.text, block.place, "exec"), self.names)
        elif block.language == "yaml":
            yaml.safe_load(block.text)
            if block.mark == "file":
                Path(block.value).write_text(block.text)
        else:
            for words in block.commands():
                self.call(words, block)

    def call(self, words: list[str], block: Block) -> None:
        if words[0] == "source":
            return
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            # The generated data stand for the reader's.
            if name != "DETECTRON2_DATASETS":
                self.monkeypatch.setenv(name, value)
            return
        if words[0] == "pip" and block.mark == "parsed":
            return
        if words[0] == "make":
            done = subprocess.run(["make", "-n", *words[1:]], cwd=PROJECT, capture_output=True)
            assert done.returncode == 0, f"{block.place}: {done.stderr.decode()}"
            return
        words[0] = COMMANDS.get(words[0], words[0])
        # Behind python, torchrun or srun.
        index = next((i for i, word in enumerate(words) if word.endswith(".py")), None)
        assert index is not None, f"{block.place}: what is {words[0]}?"
        script, arguments = words[index], words[index + 1 :]
        self.provide(arguments)
        if block.mark == "tiny":
            arguments += [*TINY, *shlex.split(block.value)]
            self.provide([self.config(script, arguments).MODEL.WEIGHTS])
        elif block.mark == "parsed" and script.endswith("train_stages.py"):
            # Its plan merges all configs of the chain.
            arguments.insert(0, "--dry-run")
        elif block.mark == "parsed":
            self.config(script, arguments)
            return
        done = self.tool(script, *arguments, cwd=Path.cwd())
        assert done.returncode == 0, f"{block.place}: {done.stdout}{done.stderr}"

    def mentioned(self, words: list[str], place: str) -> None:
        """Parse a command of a sentence, or of a tool's --help."""
        index = next(i for i, word in enumerate(words) if word.endswith(".py"))
        ends = (i for i, word in enumerate(words) if i > index and word in ("|", ">"))
        script, arguments = words[index], words[index + 1 : next(ends, None)]
        self.provide(arguments)
        flags = vars(self.namespace(script, arguments))
        try:
            if flags.get("opts"):
                build_config(flags.get("config_file") or "", flags["opts"])
        except InputError as error:
            pytest.fail(f"{place}: {error}")

    def config(self, script: str, arguments: list[str]) -> CfgNode:
        """Have the tool's own parser read the flags, and merge its KEY VALUE pairs."""
        flags = vars(self.namespace(script, arguments))
        return build_config(flags.get("config_file") or "", flags.get("opts") or [])

    def namespace(self, script: str, arguments: list[str]) -> argparse.Namespace:
        parse_args = argparse.ArgumentParser.parse_args

        def stop(parser: argparse.ArgumentParser, *args: object) -> None:
            raise ParsedError(parse_args(parser, *args))

        with (
            mock.patch.object(argparse.ArgumentParser, "parse_args", stop),
            pytest.raises(ParsedError) as parsed,
        ):
            done = self.tool(script, *arguments, cwd=Path.cwd())
            pytest.fail(f"{shlex.join([script, *arguments])}: {done.stderr}")
        (namespace,) = parsed.value.args
        return namespace

    def provide(self, words: list[str]) -> None:
        """Put what a command reads below output/ there, if it is not."""
        for before, word in zip(["", *words], words, strict=False):
            if before == "--run":
                # Of a recipe's stages, one.
                shutil.copytree(self.trained, Path(word, "stage_1"), dirs_exist_ok=True)
            if before == "--input" and word.endswith(".mp4"):
                write_video(Path(word), "street.png")
            if before == "--output":
                continue
            for name in re.findall(r"output/[\w./-]+\.(?:pth|yaml)\b", word):
                path = Path(name)
                if path.exists():
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.suffix == ".pth":
                    shutil.copy(self.trained / "model_final.pth", path)
                elif path.name == "config.yaml":
                    path.write_text(f"_BASE_: {self.trained}/config.yaml\n{SHORT}")
                else:
                    path.write_text("MODEL: {RPN: {IOU_THRESHOLDS: [0.2, 0.8]}}\n")
            for name in re.findall(r"output/[\w./-]+_leftImg8bit\.png", word):
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy("street.png", name)


def write_video(path: Path, image: str) -> None:
    """Show the image for three frames."""
    frame = cv2.imread(image)
    codec = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, codec, 25.0, frame.shape[1::-1])
    for _ in range(3):
        writer.write(frame)
    writer.release()


@pytest.fixture
def reader(
    tool: Run, trained: Path, small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Reader]:
    for name in ("configs", "datasets", "tools"):
        (tmp_path / name).symlink_to(PROJECT / name)
    (tmp_path / "data").symlink_to(small_root)
    shutil.copy(
        next(small_root.glob("cityscapes/leftImg8bit/val/*/*.png")), tmp_path / "street.png"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_root))
    before = set(DatasetCatalog.list())
    yield Reader(tool, trained, monkeypatch)
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_a_reader_can_follow(page: Path, reader: Reader) -> None:
    for block in blocks_of(page):
        reader.follow(block)
    for name in OUTPUTS.get(page.relative_to(PROJECT).as_posix(), ()):
        assert Path(name).stat().st_size > 100


@pytest.mark.parametrize("page", [*PAGES, PROJECT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_tables_begin_after_a_blank_line(page: Path) -> None:
    """Python-Markdown shows others as text."""
    lines = page.read_text().splitlines()
    for number, (before, line) in enumerate(zip(["", *lines], lines, strict=False), 1):
        assert (
            not line.startswith("|") or before.strip() == "" or before.startswith(("|", "<!--"))
        ), f"{page}:{number}: a table needs a blank line before it"


def test_no_line_begins_as_the_one_before() -> None:
    """A paragraph's first line was once left where its new one was put."""
    for page in PAGES:
        lines = page.read_text().splitlines()
        for number, (before, line) in enumerate(pairwise(lines), 2):
            same = len(line) >= 60 and line[:60] == before[:60]
            # Rows of a table and commands may.
            allowed = line.startswith(("|", "python "))
            assert allowed or not same, f"{page}:{number}: twice?"


def examples_of(script: Path) -> list[str]:
    """The commands in the examples of a tool's --help, each on one line."""
    commands = []
    for node in ast.walk(ast.parse(script.read_text())):
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and re.search(r"^examples?\b.*:$", text, re.MULTILINE):
            # Commands are indented; what introduces them ends with a colon.
            pattern = r"^ +((?:torchrun .*|.*\| )?(?:tools|datasets)/\w+\.py(?: .*)?[^:\n])$"
            commands += re.findall(pattern, re.sub(r"\\\n *", "", text), re.MULTILINE)
    # Three dots stand for what cannot be parsed.
    return [command for command in commands if " ... " not in command]


def test_every_example_of_a_tools_help_is_parsed(reader: Reader) -> None:
    scripts = [PROJECT / script for script in COMMANDS.values()]
    for name in ("my_data.yaml", "my.pth"):
        Path(name).touch()
    for script in scripts:
        examples = examples_of(script)
        assert examples, script
        for line in examples:
            reader.mentioned(shlex.split(line, comments=True), f"{script.name}: {line}")


def mentions_of(page: Path) -> list[str]:
    """The commands in the sentences of a page: `tools/NAME.py --flag`, `NAME.py --flag`."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    names = "|".join(Path(script).name for script in COMMANDS.values())
    pattern = rf"`((?:python )?(?:tools/|datasets/)?(?:{names})\s[^`]+)`"
    return [" ".join(words.split()) for words in re.findall(pattern, text)]


def test_every_command_in_a_sentence_is_parsed(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Required flags and values may be left out or be capitals; flags and choices must exist."""
    folders = {Path(script).name: script for script in COMMANDS.values()}
    add_argument, checked = argparse.ArgumentParser.add_argument, 0

    def add_optional(parser: argparse.ArgumentParser, *names: str, **options: Any) -> Any:
        options.pop("type", None)
        if names[0].startswith("-"):
            options.pop("required", None)
            if "action" not in options and "nargs" not in options:
                options["nargs"] = "?"
        elif options.get("nargs") in (None, "+"):
            options["nargs"] = "*" if "nargs" in options else "?"
        return add_argument(parser, *names, **options)

    group = argparse.ArgumentParser.add_mutually_exclusive_group
    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", add_optional)
    monkeypatch.setattr(
        argparse.ArgumentParser, "add_mutually_exclusive_group", lambda parser, **_: group(parser)
    )
    for page in [*PAGES, PROJECT / "CHANGELOG.md"]:
        for line in mentions_of(page):
            words = shlex.split(line)
            index = next(i for i, word in enumerate(words) if word.endswith(".py"))
            words[index] = folders[Path(words[index]).name]
            reader.mentioned(words, f"{page.name}: {line}")
            checked += 1
    assert checked > 15


def documented_commands() -> Iterator[tuple[str, list[str]]]:
    """The commands of all pages, and of what the tools' ``--help`` shows."""
    for page in PAGES:
        for block in blocks_of(page):
            if block.language == "bash":
                yield from ((block.place, words) for words in block.commands())
    for script in COMMANDS.values():
        for command in examples_of(PROJECT / script):
            yield Path(script).name, shlex.split(command, comments=True)


def test_stage_3_is_scored_on_images_that_it_has_not_seen() -> None:
    """It trains on parts 1 and 2 of val, and so have its exports."""
    checked = []
    for place, words in documented_commands():
        command = shlex.join(words)
        if not re.search(r"output/(stage_3|onnx|int8|weights|pruned)\b", command):
            continue
        for flag, value in pairwise(words):
            if flag in ("--score", "--dataset"):
                assert re.fullmatch(r"cityscapes_instance_val_part(3|4|3and4)of4", value), (
                    f"{place}: {command}"
                )
                checked.append(place)
        # All images of a folder, unless a list chooses some.
        assert "--gt-dir" not in words or "--image-list" in words, f"{place}: {command}"
    assert {"compress_model.py", "export_model.py"} < set(checked)
    assert len(checked) >= 8


def test_the_readme_is_short_and_its_table_has_every_tool() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    rows = re.findall(r"^\| [^|]+ \| `(\w+/\w+\.py)` \| `([\w-]+)` \|", text, re.MULTILINE)
    assert {f"cityscapes-{name}": script for script, name in rows} == COMMANDS
    scripts = [*PROJECT.glob("tools/*.py"), *PROJECT.glob("datasets/*.py")]
    assert sorted(script for script, _ in rows) == sorted(
        script.relative_to(PROJECT).as_posix() for script in scripts
    )


def test_the_readmes_python_is_short() -> None:
    (block,) = (block for block in blocks_of(README) if block.language == "python")
    lines = [line for line in block.text.splitlines() if line.strip() and line.strip()[0] != "#"]
    assert len(lines) <= 10


def test_every_place_gives_the_demo_the_same_time() -> None:
    assert "takes about 12 minutes in all" in (PROJECT / "docs/setup.md").read_text()
    for name in ("README.md", "Makefile", "docs/setup.md", "docs/demo.ipynb"):
        text = (PROJECT / name).read_text()
        assert "about 12 minutes in all" in text, name
        assert not re.search(r"(3 to 5|ten) minutes|set-up of 3|10 to 15|12 to 13", text), name


def recipe_tables() -> dict[str, dict[str, str]]:
    """What docs/recipe.md says of each config: value by key."""
    text = (PROJECT / "docs/recipe.md").read_text()
    sections = re.split(r"^\[(configs/\S+\.yaml)\]\(\.\./\1\)(?=[,:])", text, flags=re.M)
    # The config's own table ends where its section does.
    return {
        config: dict(re.findall(r"^\| `(\S+)` \| `(.*?)` \|", table.split("\n## ")[0], re.M))
        for config, table in zip(sections[1::2], sections[2::2], strict=True)
    }


def leaves_of(node: dict[str, Any], prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for name, value in node.items():
        if isinstance(value, dict):
            keys |= leaves_of(value, f"{prefix}{name}.")
        elif name != "_BASE_":
            keys.add(prefix + name)
    return keys


def test_the_recipes_numbers_are_those_of_the_configs() -> None:
    for config, rows in recipe_tables().items():
        cfg = build_config(str(PROJECT / config), [])
        for key, value in rows.items():
            expected = cfg
            for part in key.split("."):
                expected = expected[part]
            assert literal_eval(value) == expected, f"{config}: {key}"


def test_every_value_of_the_recipes_configs_has_a_reason() -> None:
    tables = recipe_tables()
    names = [f"configs/{row.config}" for row in STEPS.values()]
    bases = [f"configs/{path.name}" for path in (PROJECT / "configs").glob("Base-*.yaml")]
    assert tables.keys() == {*names, *bases}
    for config, rows in tables.items():
        keys = leaves_of(yaml.safe_load((PROJECT / config).read_text()))
        assert sorted(keys - rows.keys()) == [], config


def test_the_recipes_schedules_are_those_of_the_configs() -> None:
    text = (PROJECT / "docs/recipe.md").read_text()
    header, _, *rows = text[text.index("| stage | starts from") :].split("\n\n")[0].splitlines()
    assert header.endswith("| trains | schedule |")
    images = {
        "coarse labels of five cities, 4,120 images": "cityscapes_coarse_semantic_pretrain",
        "fine train": "cityscapes_instance_train",
        "train part 1 of 8, 372 images": "cityscapes_instance_train_part1of8",
        "val parts 1 and 2, 250 images": (
            "cityscapes_instance_val_part1of4",
            "cityscapes_instance_val_part2of4",
        ),
        "scored on val part 1 of 4": "cityscapes_instance_val_part1of4",
        "monitored on val part 2": "cityscapes_instance_val_part2of4",
        "reported on parts 3 and 4": "cityscapes_instance_val_part3and4of4",
    }
    stages = ["stage_0", "stage_1", "search", "stage_2", "stage_3"]
    rates = []
    for stage, row in zip(stages, rows, strict=True):
        _, _, _, data, trains, schedule, _ = (cell.strip() for cell in row.split("|"))
        cfg = build_config(str(PROJECT / "configs" / STEPS[stage].config), [])
        solver = cfg.SOLVER
        trained, *scored = data.split("; ")
        named = images[trained.replace("fine train, 2,975 images", "fine train")]
        assert ((named,) if isinstance(named, str) else named) == cfg.DATASETS.TRAIN, stage
        assert [cfg.DATASETS.TEST[0]] * len(scored) == [images[each] for each in scored], stage
        assert f"{solver.EPOCHS} epochs" in schedule
        if (rate := re.search(r"(AdamW?) ([\d.e-]+)", schedule)) is not None:
            assert (rate[1], float(rate[2])) == (solver.OPTIMIZER, solver.BASE_LR), stage
        else:
            assert "a tenth of the rate" in schedule
            assert pytest.approx(rates[-1] / 10) == solver.BASE_LR
        rates.append(solver.BASE_LR)
        if (end := re.search(r"cosine to ([\d.e-]+)", schedule)) is not None:
            assert (
                "WarmupCosineLR",
                float(end[1]),
            ) == (solver.LR_SCHEDULER_NAME, solver.BASE_LR_END)
        plateau = "lowered on a plateau, early stopping" in schedule
        assert plateau == (solver.LR_SCHEDULER_NAME == "ReduceLROnPlateau")
        assert plateau == solver.EARLY_STOPPING.ENABLED
        whole = trains in ("everything", "the whole DeepLabv3")
        assert (0 if whole else 5) == cfg.MODEL.BACKBONE.FREEZE_AT, stage
    space = build_config("", []).SEARCH.PARAMETERS
    for name, words in (
        ("fg_iou_thresh", "for the box head ({} to {};"),
        ("rpn_positive_iou_thresh", "foreground from {} to {},"),
        ("rpn_negative_iou_thresh", "background below {} to {})"),
    ):
        expected = words.format(space[name].LOW, space[name].HIGH)
        assert expected in " ".join(text.split()), expected
    (trials,) = re.findall(r"(\d+) trials of", rows[2])
    assert f"default={trials}" in (PROJECT / "tools/train_stages.py").read_text()


def test_every_page_gives_the_recipe_the_same_hours() -> None:
    for name in ("recipe", "cards", "accuracy"):
        text = (PROJECT / f"docs/{name}.md").read_text()
        # The cards have a digit more.
        assert ("5.2 to 7.9" if name == "cards" else "5 to 8") in text, name
        assert "11 to 17" in text, name


def test_extras_exist() -> None:
    for page in PAGES:
        for extras in re.findall(r"-e '?\.\[([\w,]+)\]", page.read_text()):
            for extra in extras.split(","):
                assert f'"{extra}": [' in SETUP, f"{page}: {extra}"


def test_citation_and_forms() -> None:
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version"} <= citation.keys()
    assert citation["version"] == cityscapes_maskrcnn.__version__
    titles = [reference["title"] for reference in citation["references"]]
    assert [title.partition(" Dataset")[0] for title in titles] == [
        "The Cityscapes",
        "Mask R-CNN",
        "Detectron2",
    ]
    for form in ("bug_report", "feature_request"):
        content = yaml.safe_load((PROJECT / f".github/ISSUE_TEMPLATE/{form}.yml").read_text())
        assert {"name", "description", "body"} <= content.keys()
        fields = [field for field in content["body"] if field["type"] != "markdown"]
        assert len({field["id"] for field in fields}) == len(fields)
        assert all(field["attributes"]["label"] for field in fields)
