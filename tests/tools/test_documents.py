"""Every command and every code block of the documents, run or parsed as its mark says.

A fenced block begins with its language and at most one mark; CONTRIBUTING.md describes them. Runs
are on the small generated data set; below ``output/``, a checkpoint that no block of the page has
made is one of the tiny network's, and a file of INCLUDE sets thresholds alone.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shlex
import shutil
import subprocess
from ast import literal_eval
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

import cityscapes_maskrcnn
from cityscapes_maskrcnn.cli import build_config

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
    "docs/recipe.md": ["output/anchors/anchors.png"],
    "docs/usage.md": [
        "output/stage_1/training_curves.png",
        "output/stage_1_val/inference/analysis/per_class.csv",
        "output/curves/stage_1.png",
        "output/gallery/index.md",
        "output/val.zip",
        "output/submission.zip",
    ],
    "tools/README.md": ["output/data/report.md"],
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
            self.provide(re.findall(r"\"([^\"]*)\"", block.text))
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


def documented_commands() -> Iterator[tuple[str, list[str]]]:
    """The commands of all pages, and of what the tools' ``--help`` shows."""
    for page in PAGES:
        for block in blocks_of(page):
            if block.language == "bash":
                yield from ((block.place, words) for words in block.commands())
    for script in sorted(PROJECT.glob("tools/*.py")):
        text = script.read_text().replace("\\\\\n", " ")
        for command in re.findall(r"^ *(tools/\w+\.py .*)", text, re.MULTILINE):
            yield script.name, shlex.split(command)


def test_stage_3_is_scored_on_images_that_it_has_not_seen() -> None:
    """It trains on parts 1 and 2 of val, and so have its exports."""
    checked = []
    for place, words in documented_commands():
        command = shlex.join(words)
        if not re.search(r"output/(stage_3|onnx|int8|weights|pruned)\b", command):
            continue
        for flag, value in itertools.pairwise(words):
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


def test_the_recipes_numbers_are_those_of_the_configs() -> None:
    sections = re.split(
        r"^\[(configs/\S+)\].*:$", (PROJECT / "docs/recipe.md").read_text(), flags=re.M
    )
    checked = 0
    for config, text in zip(sections[1::2], sections[2::2], strict=True):
        cfg = build_config(str(PROJECT / config), [])
        # The config's own table ends where its section does.
        for key, value in re.findall(r"^\| `(\S+)` \| `(.*?)` \|", text.split("\n## ")[0], re.M):
            expected = cfg
            for part in key.split("."):
                expected = expected[part]
            assert literal_eval(value) == expected, f"{config}: {key}"
            checked += 1
    assert checked > 50


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
