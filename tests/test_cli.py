"""How the config comes together."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import yaml
from detectron2.engine import default_argument_parser

from cityscapes_maskrcnn.cli import (
    argument_parser,
    build_config,
    launch,
    setup,
    split_at_first_key,
)
from cityscapes_maskrcnn.utils.errors import InputError

STAGE_1 = str(Path(__file__).parents[1] / "configs" / "stage_1_heads.yaml")

BOMB = "a0: &a0 [0]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
MERGE_BOMB = "a0: &a0 {k: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 12)
)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two fragments, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    Path("best.yaml").write_text("MODEL: {RPN: {IOU_THRESHOLDS: [0.2, 0.8]}}\nSEED: 5\n")
    Path("sub/anchors.yaml").write_text(
        "MODEL: {ANCHOR_GENERATOR: {SIZES: [[31], [73], [131], [210], [330]]}}\nSEED: 6\n"
    )
    return tmp_path


def test_configs_of_the_package_are_found_from_anywhere(files: Path) -> None:
    stage_1 = build_config(STAGE_1, [])
    for name in (
        "configs/stage_1_heads.yaml",
        "stage_1_heads.yaml",
        "./configs/stage_1_heads.yaml",
    ):
        assert build_config(name, []) == stage_1
    demo = build_config("demo/stage_1_heads.yaml", [])
    assert demo.MODEL.WEIGHTS == "output/demo/stage_0/model_final.pth"
    # A file in the working folder comes first.
    (files / "configs").mkdir()
    (files / "configs" / "stage_1_heads.yaml").write_text("SEED: 9\n")
    assert build_config("configs/stage_1_heads.yaml", []).SEED == 9
    assert build_config("stage_1_heads.yaml", []) == stage_1


def test_weights_of_the_package_are_found_from_anywhere(files: Path) -> None:
    weights = "configs/demo/start_weights.safetensors"
    assert Path(build_config("demo/stage_0_backbone.yaml", []).MODEL.WEIGHTS).is_file()
    # A file in the working folder comes first, and what is nowhere keeps its name.
    (files / "configs" / "demo").mkdir(parents=True)
    (files / weights).touch()
    gone = ("configs/demo/gone.pth", "configs/../setup.py", "demo/start_weights.safetensors")
    for name in (weights, *gone):
        found = build_config(STAGE_1, ["MODEL.WEIGHTS", name]).MODEL.WEIGHTS
        assert found == name


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("stage_9.yaml", "no such file in {here}, and no {configs}/stage_9.yaml"),
        ("configs/r9/x.yaml", "no such file in {here}, and no {configs}/r9/x.yaml"),
        # Where such a name leads to is known.
        ("/nowhere/stage_1_heads.yaml", "no such file"),
        ("../configs/stage_1_heads.yaml", "no such file"),
        ("configs/../stage_1_heads.yaml", "no such file"),
        ("sub", "is a folder"),
    ],
)
def test_a_missing_config_says_where_it_was_looked_for(files: Path, name: str, places: str) -> None:
    with pytest.raises(InputError) as caught:
        build_config(name, [])
    places = places.format(here=files, configs=Path(STAGE_1).parent)
    assert str(caught.value) == f"config file {name}: {places}"


def test_a_missing_config_is_looked_for_once_where_both_places_are_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project = Path(STAGE_1).parents[1]
    monkeypatch.chdir(project)
    with pytest.raises(InputError) as caught:
        build_config("configs/gone.yaml", [])
    assert str(caught.value) == f"config file configs/gone.yaml: no such file in {project}"


@pytest.mark.usefixtures("files")
def test_included_files_add_to_what_was_tuned_on() -> None:
    parts = [f"cityscapes_instance_val_part{part}of4" for part in (1, 2, 3, 4)]
    Path("child.yaml").write_text(f"_BASE_: {STAGE_1}\nDATASETS: {{TUNED_ON: ['{parts[0]}']}}\n")
    Path("a.yaml").write_text(f"DATASETS: {{TUNED_ON: ['{parts[1]}']}}\n")
    Path("b.yaml").write_text(f"DATASETS: {{TUNED_ON: ['{parts[2]}', '{parts[0]}']}}\n")
    both = ["INCLUDE", "('a.yaml','best.yaml','b.yaml')"]
    cfg = build_config("child.yaml", both)
    assert list(cfg.DATASETS.TUNED_ON) == parts[:3]
    # On the command line the key replaces them.
    cfg = build_config("child.yaml", [*both, "DATASETS.TUNED_ON", f"('{parts[3]}',)"])
    assert list(cfg.DATASETS.TUNED_ON) == parts[3:]


@pytest.mark.usefixtures("files")
def test_included_files_come_between_the_config_file_and_the_command_line() -> None:
    both = ["INCLUDE", "('best.yaml','sub/anchors.yaml')"]
    plain = build_config(STAGE_1, [])
    assert plain.MODEL.RPN.IOU_THRESHOLDS == [0.3, 0.7]
    cfg = build_config(STAGE_1, both)
    assert cfg.MODEL.RPN.IOU_THRESHOLDS == [0.2, 0.8]
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[31], [73], [131], [210], [330]]
    # The later file of the two, which both set SEED; the config file says 42.
    assert (plain.SEED, cfg.SEED) == (42, 6)
    # Everything else is the config file's.
    assert cfg.SOLVER == plain.SOLVER
    # The command line wins, wherever INCLUDE stands in it.
    for opts in (["SEED", "7", *both], [*both, "SEED", "7"]):
        assert build_config(STAGE_1, opts).SEED == 7


def test_a_config_file_may_include(files: Path) -> None:
    (files / "child.yaml").write_text(f"_BASE_: {STAGE_1}\nINCLUDE: ['best.yaml']\nSEED: 8\n")
    assert build_config("child.yaml", []).SEED == 5
    # The command line's INCLUDE replaces the file's, as with every key.
    assert build_config("child.yaml", ["INCLUDE", "()"]).SEED == 8
    assert build_config("child.yaml", ["INCLUDE", "['sub/anchors.yaml']"]).SEED == 6


def test_the_saved_config_needs_no_other_file(files: Path) -> None:
    cfg = build_config(STAGE_1, ["INCLUDE", "('best.yaml',)"])
    (files / "saved.yaml").write_text(cfg.dump())
    (files / "best.yaml").unlink()
    assert "INCLUDE: []" in (files / "saved.yaml").read_text()
    again = build_config("saved.yaml", [])
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())


@pytest.mark.parametrize(
    ("content", "opts", "message"),
    [
        (None, ["INCLUDE", "('missing.yaml',)"], "INCLUDE missing.yaml: no such file"),
        (None, ["INCLUDE", "(3,)"], "INCLUDE (3,): its values must be as in ('name',)"),
        (
            None,
            ["INCLUDE", "missing.yaml"],
            "command line, INCLUDE missing.yaml: INCLUDE must be of type tuple",
        ),
        ("MODEL: {RPM: 1}", None, "bad.yaml: there is no config key MODEL.RPM; did you mean"),
        ("SEED: [1", None, "bad.yaml is not plain yaml"),
        ("SEED: !!python/object/apply:os.getcwd []", None, "bad.yaml is not plain yaml"),
        ("SEED: many", None, "bad.yaml: SEED must be of type int, such as 5, not str"),
        ("SOLVER: [1]", None, "bad.yaml: SOLVER is a section of KEY: VALUE lines, not a value"),
        ("SEED: " + "[" * 3000 + "]" * 3000, None, "bad.yaml: nested more than 50 levels deep"),
        ("SEED: &a [*a]", None, "bad.yaml: the alias *a is part of itself"),
        # Ten to the power of eleven values, as lists and as merged keys.
        (BOMB, None, "bad.yaml: with its aliases written out it has more than 100,000 values"),
        (MERGE_BOMB, None, "bad.yaml: with its aliases written out it has more than 100,000 value"),
        ("#" * 2_000_000, None, "bad.yaml: more than 1,048,576 bytes are no config"),
        ("_BASE_: .", None, ".: not a regular file"),
        ("[1, 2]", None, "bad.yaml: not a config: it must hold sections of KEY: VALUE lines"),
        ("_BASE_: [1, 2]", None, "bad.yaml: not a config"),
        ("\x00\xff", None, "bad.yaml is not plain yaml"),
        ("_BASE_: bad.yaml", None, "bad.yaml: its _BASE_ leads back to itself"),
        ("DATASETS: {TUNED_ON: [{}]}", None, "DATASETS.TUNED_ON ({},): its values must be"),
        ("INCLUDE: ['best.yaml']", None, "bad.yaml: an included file cannot include others"),
        (
            'DATASETS: {OWN: {foggy: {IMAGE_DIR: "a\\0"}}}',
            None,
            r"DATASETS.OWN.foggy.IMAGE_DIR 'a\x00': it holds a control character or half of a ",
        ),
    ],
)
def test_bad_includes_get_one_line(
    files: Path, content: str | None, opts: list[str] | None, message: str
) -> None:
    if content is not None:
        (files / "bad.yaml").write_text(content)
    with pytest.raises(InputError) as caught:
        build_config(STAGE_1, opts or ["INCLUDE", "('best.yaml','bad.yaml')"])
    assert str(caught.value).startswith(message)


def test_key_value_pairs_may_follow_a_flag_of_several_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("INPUT.PNG").touch()
    images = ["street.jpg", "INPUT.PNG", "DSC001.JPG", "Model.d/*.png"]
    for keys in ([], ["MODEL.WEIGHTS", "x.pth"], ["OUTPUT_DIR", "o", "SEED", "1"]):
        assert split_at_first_key([*images, *keys]) == (images, keys)
    forgotten = ["MODEL.WEIGHTS", "x.pth"]
    assert split_at_first_key(forgotten) == (forgotten, [])


def test_typed_iterations_replace_the_epochs_of_the_file() -> None:
    assert build_config(STAGE_1, []).SOLVER.EPOCHS == 4
    cfg = build_config(STAGE_1, ["SOLVER.MAX_ITER", "7", "TEST.EVAL_PERIOD", "3"])
    assert (cfg.SOLVER.EPOCHS, cfg.SOLVER.MAX_ITER) == (0, 7)
    assert (cfg.TEST.EVAL_EPOCHS, cfg.TEST.EVAL_PERIOD) == (0, 3)
    # Who types both means the epochs, as the key's comment says.
    assert build_config(STAGE_1, ["SOLVER.EPOCHS", "2", "SOLVER.MAX_ITER", "7"]).SOLVER.EPOCHS == 2


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("SOLVER.EPOCHS", "SOLVER.EPOCHS must be of type int, such as 4, not str"),
        ("SOLVER.MAX_ITER.X", "there is no config key SOLVER.MAX_ITER.X; did you mean SOLVER.MAX_"),
        ("SOLVER", "SOLVER is a section; name a key in it, such as SOLVER."),
    ],
)
def test_bad_options_get_one_line(key: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        build_config(STAGE_1, [key, "four"])
    assert str(caught.value).startswith(f"command line, {key} four: {message}")


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["DATASETS.TRAIN", "(5,)"], "DATASETS.TRAIN (5,): its values must be as in ('name',)"),
        (["DATASETS.TEST", "[[]]"], "DATASETS.TEST ([],): its values must be as in ('name',)"),
        (["DATASETS.TEST", "None"], "DATASETS.TEST None: it must be of type tuple"),
        (["INCLUDE", "None"], "INCLUDE None: it must be of type tuple"),
        (["MODEL.DEVICE", "None"], "MODEL.DEVICE None: it must be of type str"),
        (["MODEL.DEVICE", "gpu"], "MODEL.DEVICE gpu: it must be cuda, cuda:N or cpu"),
        (
            ["MODEL.RPN.IOU_THRESHOLDS", "['a','b']"],
            "MODEL.RPN.IOU_THRESHOLDS ['a', 'b']: its values must be as in [0.3, 0.7]",
        ),
        (
            ["MODEL.RPN.IOU_LABELS", "[[0],-1,1]"],
            "MODEL.RPN.IOU_LABELS [[0], -1, 1]: its values must be as in [0, -1, 1]",
        ),
        (
            ["INPUT.MIN_SIZE_TRAIN", "(None,)"],
            "INPUT.MIN_SIZE_TRAIN (None,): its values must be as in (800,)",
        ),
        (["MODEL.FPN.IN_FEATURES", "[2]"], "MODEL.FPN.IN_FEATURES [2]: its values must be as in"),
        (["SEED", "[" * 300], "command line, SEED"),
        (
            ["OUTPUT_DIR", r"'a\0b'"],
            r"OUTPUT_DIR 'a\x00b': it holds a control character or half of a character",
        ),
        (
            ["MODEL.WEIGHTS", r"'\ud83d.pth'"],
            r"MODEL.WEIGHTS '\ud83d.pth': it holds a control character or half of a character",
        ),
        (["SEED", "0x" + "f" * 5000], "SEED: a whole number of more than 64 bits"),
        (["SOLVER.MAX_ITER", "-0x8000000000000001"], "SOLVER.MAX_ITER: a whole number of more"),
        (["MODEL.PIXEL_STD", "[1e400,1,1]"], "MODEL.PIXEL_STD inf: not a finite number"),
        (["SOLVER.BASE_LR", "1e400"], "SOLVER.BASE_LR inf: not a finite number"),
        (["OUTPUT_DIR", "a\x1b[2J"], r"OUTPUT_DIR 'a\x1b[2J': it holds a control character or"),
        (
            ["TEST.EXPECTED_RESULTS", r"[{'\x1b[2J': '\x07'}]"],
            r"TEST.EXPECTED_RESULTS '\x1b[2J': it holds a control character or half of a character",
        ),
        (
            ["OUTPUT_DIR", "o", "--resume"],
            "--resume: flags go before the KEY VALUE pairs, which begin at OUTPUT_DIR",
        ),
        (["OUTPUT_DIR", "o", "--num-gpus", "2"], "--num-gpus: flags go before the KEY VALUE pairs"),
        (["OUTPUT_DIR"], "config options come as KEY VALUE pairs; one is incomplete in: ['OUTPUT_"),
    ],
)
def test_values_of_a_wrong_type_get_one_line(opts: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        build_config(STAGE_1, opts)
    assert str(caught.value).startswith(message)


@pytest.mark.usefixtures("files")
def test_numbers_in_a_file_are_numbers() -> None:
    for value in (".nan", "[.nan, 1]"):
        key = "SOLVER: {BASE_LR" if value == ".nan" else "MODEL: {PIXEL_STD"
        Path("bad.yaml").write_text(f"_BASE_: {STAGE_1}\n{key}: {value}}}\n")
        with pytest.raises(InputError, match="not a finite number"):
            build_config("bad.yaml", [])


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("section", ["DATASETS: {OWN:", "SEARCH: {PARAMETERS:"])
def test_names_of_sections_that_a_terminal_would_obey(section: str) -> None:
    text = f'_BASE_: {STAGE_1}\n{section} {{"\\e[2J": {{IMAGE_DIR: a}}}}}}\n'
    Path("bad.yaml").write_text(text)
    with pytest.raises(InputError, match=r"\.\x1b\[2J: a config key with characters that cannot"):
        build_config("bad.yaml", [])


def test_values_that_detectron2_takes_are_taken() -> None:
    for key, value in [
        ("MODEL.FPN.NORM", None),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [32, 64, 128, 256, 512]),
        ("MODEL.ANCHOR_GENERATOR.SIZES", []),
        ("MODEL.PIXEL_STD", [1, 1.0, 1]),
        ("TEST.EXPECTED_RESULTS", [["segm", "AP", 30, 1.0]]),
    ]:
        cfg = build_config(STAGE_1, [key, str(value)])
        *sections, name = key.split(".")
        for section in sections:
            cfg = cfg[section]
        assert cfg[name] == value


def test_scripts_with_detectron2s_parser_set_up(tmp_path: Path) -> None:
    """Its flags do not have those that this project adds."""
    options = ["MODEL.WEIGHTS", "missing.pth", "OUTPUT_DIR", str(tmp_path / "run")]
    args = default_argument_parser().parse_args(["--config-file", STAGE_1, *options])
    with pytest.raises(InputError, match=r"^missing\.pth: no such file"):
        setup(args)
    # Inputs are looked at before anything is written.
    assert not (tmp_path / "run").exists()


def test_several_processes_leave_the_caller_as_it_was(tmp_path: Path) -> None:
    """Also when they fail."""
    before = dict(os.environ), [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    options = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path)]
    args = argument_parser("").parse_args(["--num-gpus", "2", "--config-file", STAGE_1, *options])
    with pytest.raises(InputError, match="refused"):
        launch(refuse, args)
    after = dict(os.environ), [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    assert after == before


def refuse(_args: object) -> None:
    raise InputError("refused")
