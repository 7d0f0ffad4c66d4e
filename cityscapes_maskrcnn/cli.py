"""Code that all tools share: Detectron2's flags, building the config, launching processes."""

from __future__ import annotations

import argparse
import difflib
import io
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from cityscapes_maskrcnn.utils.imports import paused_garbage_collection

with paused_garbage_collection():
    import detectron2.modeling

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from cityscapes_maskrcnn.config import add_cityscapes_maskrcnn_config
from cityscapes_maskrcnn.config_check import (
    check_ranges,
    check_thresholds,
    check_values,
)
from cityscapes_maskrcnn.data.registration import (
    register_all,
    register_datasets_of,
)
from cityscapes_maskrcnn.engine.checkpoint import check_weights_file, holds_run
from cityscapes_maskrcnn.engine.class_check import check_classes
from cityscapes_maskrcnn.engine.processes import GroupSettings, run_in_group, run_processes
from cityscapes_maskrcnn.engine.run_anchors import resolve_anchors
from cityscapes_maskrcnn.engine.run_setup import lock_output_dir, refuse_earlier_run, start_run
from cityscapes_maskrcnn.engine.solver import IN_EPOCHS, resolve_epochs
from cityscapes_maskrcnn.utils.config_keys import config_items
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.parallel import available_cores
from cityscapes_maskrcnn.utils.process_group import place_of_launcher
from cityscapes_maskrcnn.utils.shipped import shipped_folder
from cityscapes_maskrcnn.utils.yaml_files import MAX_BYTES, check_yaml


def argument_parser(description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """Make a parser with exactly Detectron2's flags.

    Only the default of ``--dist-url`` differs (``auto``, a free port of this machine), and the help
    where Detectron2's speaks of its own code.

    Args:
        description: one sentence about what the tool does.
        epilog: examples, shown at the end of ``--help``.
    """
    parser = default_argument_parser(epilog=epilog)
    parser.description = description
    parser.set_defaults(dist_url="auto")
    actions = {action.dest: action for action in parser._actions}
    # Detectron2 describes its LazyConfig here.
    opts = actions["opts"]
    opts.metavar, opts.help = "KEY VALUE", "config keys and their values, after all flags"
    actions["resume"].help = (
        "continue the run in OUTPUT_DIR from its last checkpoint, for instance after an"
        " interruption; where there is none, start"
    )
    return parser


def build_config(config_file: str, opts: list[str]) -> CfgNode:
    """Register the datasets and merge defaults, config file, ``INCLUDE`` files and command line.

    Args:
        config_file: a yaml file, or one of Detectron2's own, such as
            ``model_zoo://Cityscapes/mask_rcnn_R_50_FPN.yaml``. Empty: the defaults.
        opts: alternating keys and values, as on the command line. A length or a period in
            iterations overrides that of the file, even if the file has it in epochs.

    Returns:
        The merged config, not frozen. ``MODEL.DEVICE`` is ``cpu`` if CUDA was requested but is not
        available.

    Raises:
        InputError: a file is missing or not yaml, a key does not exist, a value has the wrong type,
            a dataset is unknown, or matching thresholds make no sense. The files of ``INCLUDE`` are
            checked too.
    """
    register_all()
    cfg = get_cfg()
    add_cityscapes_maskrcnn_config(cfg)
    defaults = cfg.clone()
    options = key_value_pairs(opts)
    if config_file:
        _merge_file(cfg, find_config(config_file))
    # INCLUDE may be on the command line, whose other keys are merged after the files it names.
    _merge_options(cfg, [(key, value) for key, value in options if key == "INCLUDE"])
    check_values(cfg, defaults)
    _merge_includes(cfg, defaults)
    _merge_options(cfg, [(key, value) for key, value in options if key != "INCLUDE"])
    check_values(cfg, defaults)
    _find_weights(cfg)
    register_datasets_of(cfg)
    check_classes(cfg)
    check_thresholds(cfg)
    check_ranges(cfg)
    _resolve_device(cfg)
    return cfg


def _find_weights(cfg: CfgNode) -> None:
    """Find ``configs/demo/start_weights.safetensors`` and the like where a wheel installed them."""
    path = Path(cfg.MODEL.WEIGHTS)
    if path.parts[:1] != ("configs",) or ".." in path.parts or path.exists():
        return
    shipped = _shipped_config(path)
    if shipped.is_file():
        cfg.MODEL.WEIGHTS = str(shipped)


def _resolve_device(cfg: CfgNode) -> None:
    """Verify ``MODEL.DEVICE``, and use the CPU if there is no GPU."""
    device = re.fullmatch(r"cpu|mps|cuda(?::(\d+))?", cfg.MODEL.DEVICE)
    if not device:
        raise InputError(f"MODEL.DEVICE {cfg.MODEL.DEVICE}: it must be cuda, cuda:N or cpu")
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        return
    gpus = torch.cuda.device_count()
    if not gpus or not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    elif int(device[1] or 0) >= gpus:
        raise InputError(f"MODEL.DEVICE {cfg.MODEL.DEVICE}: the GPUs here are 0 to {gpus - 1}")


def key_value_pairs(words: list[str]) -> list[tuple[str, str]]:
    """Split the end of a command line into config keys and their values.

    Raises:
        InputError: there is a flag among them, or a value is missing.
    """
    flag = next((word for word in words if word.startswith("--")), None)
    if flag is not None:
        raise InputError(f"{flag}: flags go before the KEY VALUE pairs, which begin at {words[0]}")
    if len(words) % 2:
        raise InputError(f"config options come as KEY VALUE pairs; one is incomplete in: {words}")
    return list(zip(words[0::2], words[1::2], strict=True))


def split_at_first_key(words: list[str]) -> tuple[list[str], list[str]]:
    """Split the words of a flag with several values, if KEY VALUE pairs follow it directly.

    Args:
        words: of ``--input street.jpg MODEL.WEIGHTS model.pth``, all that follow the flag.

    Returns:
        The values, and the KEY VALUE pairs. Names of files that exist are values.
    """
    cfg = get_cfg()
    add_cityscapes_maskrcnn_config(cfg)
    for index, word in enumerate(words):
        # The first word is a value in any case: a flag without one is a mistake to be named.
        if index and word.partition(".")[0] in cfg and not Path(word).exists():
            return words[:index], words[index:]
    return words, []


def setup(args: argparse.Namespace) -> CfgNode:
    """Build the config for a training or evaluation run and start its log.

    Args:
        args: parsed with :func:`argument_parser`, and ``overwrite``: whether to delete a run in the
            folder and start again.

    Returns:
        The frozen config. :func:`.engine.run_setup.save_config` writes it once the run is certain
        to start.

    Raises:
        InputError: see :func:`build_config`, :func:`.engine.solver.resolve_epochs`,
            :func:`.engine.run_anchors.resolve_anchors` and
            :func:`.engine.run_setup.lock_output_dir`.
    """
    if args.config_file:
        args.config_file = str(find_config(args.config_file))
    cfg = build_config(args.config_file, args.opts)
    # Scripts with Detectron2's flags have no such flag.
    overwrite = getattr(args, "overwrite", False)
    if overwrite and (args.resume or args.eval_only):
        other = "--resume, which continues it" if args.resume else "--eval-only, which only scores"
        raise InputError(f"--overwrite: deletes an earlier run, so it excludes {other}; use one")
    if not (args.eval_only or args.resume or overwrite):
        refuse_earlier_run(cfg.OUTPUT_DIR)
    if not (args.resume and holds_run(cfg.OUTPUT_DIR)):
        check_weights_file(cfg.MODEL.WEIGHTS)
    epochs = "" if args.eval_only else resolve_epochs(cfg)
    anchors = resolve_anchors(cfg, args.resume, args.eval_only)
    cfg.freeze()
    if comm.is_main_process() and not args.eval_only:
        lock_output_dir(cfg.OUTPUT_DIR)
    # Other processes write into the folder too, but not before it is locked.
    comm.synchronize()
    start_run(cfg, args)
    logger = logging.getLogger(__name__)
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        logger.warning("Running on %s: no GPU was found or requested", cfg.MODEL.DEVICE)
    if epochs:
        logger.info("Length of training: %s", epochs)
    if anchors:
        logger.info("Anchors: %s", anchors)
    return cfg


def launch(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> int:
    """Run ``main(args)`` in ``--num-gpus`` processes on this machine, with or without GPUs.

    If torchrun or srun has started several processes, this is one of them.

    Args:
        main: must be importable by name: the processes are spawned.
        args: parsed with :func:`argument_parser`.

    Returns:
        The exit status of the tool.

    Raises:
        InputError: any process found bad input, or was killed; the others are ended.
    """
    if args.num_gpus < 1 or args.num_machines < 1:
        raise InputError("--num-gpus and --num-machines must be at least 1")
    if args.num_machines > 1 and args.dist_url == "auto":
        raise InputError("several machines need the same --dist-url, tcp://HOST:PORT of machine 0")
    if not 0 <= args.machine_rank < args.num_machines:
        raise InputError(f"--machine-rank must be between 0 and {args.num_machines - 1}")
    # With --num-machines, a launcher starts one process a machine, which starts the others here.
    place = None
    if args.num_machines == 1:
        place = place_of_launcher(os.environ, several_by_flag=args.num_gpus > 1)
    if place and args.num_gpus > 1:
        raise InputError(
            f"--num-gpus {args.num_gpus}: torchrun or srun has started {place.world_size} processes"
            " already; omit the flag, or start one process per machine with --num-machines, "
            "--machine-rank and --dist-url"
        )
    # Built here too, so that a mistake in it is reported once and not by every process.
    cfg = build_config(args.config_file, args.opts)
    on_cpu = cfg.MODEL.DEVICE == "cpu"
    settings = GroupSettings(
        gpus=0 if on_cpu else torch.cuda.device_count(), timeout=cfg.PROCESS_TIMEOUT
    )
    if not place and args.num_gpus * args.num_machines == 1:
        main(args)
        return 0
    if ":" in cfg.MODEL.DEVICE:
        raise InputError(f"MODEL.DEVICE {cfg.MODEL.DEVICE}: several processes need one GPU each")
    if place:

        def report(problem: str) -> None:
            # Once a machine.
            if place.local_rank == 0:
                print(f"error: {problem}", file=sys.stderr, flush=True)  # noqa: T201

        run_in_group(main, args, place=place, settings=settings, report=report)
        return 0
    if settings.gpus and args.num_gpus > settings.gpus:
        raise InputError(f"--num-gpus {args.num_gpus}: this machine has only {settings.gpus}")
    environment = dict(os.environ)
    if on_cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        # Otherwise every process starts a thread per core and they fight for them.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // args.num_gpus)))
    try:
        return run_processes(main, args, settings)
    finally:
        os.environ.clear()
        os.environ.update(environment)


def find_config(config_file: str) -> Path:
    """Find a config file here, among the project's, or (``model_zoo://``) among Detectron2's.

    ``configs/demo/stage_1_heads.yaml`` and ``demo/stage_1_heads.yaml`` are also found where a wheel
    has installed them.

    Raises:
        InputError: there is no such file.
    """
    name = config_file.removeprefix("model_zoo://")
    if name != config_file:
        # Imported here: it needs pkg_resources, which newer setuptools lack; nothing else does.
        from detectron2 import model_zoo

        try:
            return Path(model_zoo.get_config_file(name))
        except RuntimeError as error:
            raise InputError(f"{config_file}: Detectron2's model zoo has no such config") from error
    path = Path(config_file)
    if path.is_file():
        return path
    if path.is_dir():
        raise InputError(f"config file {config_file}: is a folder")
    problem = f"config file {config_file}: no such file"
    if path.is_absolute() or ".." in path.parts:
        raise InputError(problem)
    shipped = _shipped_config(path)
    if not shipped.is_file():
        elsewhere = "" if shipped == Path.cwd() / path else f", and no {shipped}"
        raise InputError(f"{problem} in {Path.cwd()}{elsewhere}")
    return shipped


def _shipped_config(path: Path) -> Path:
    """Where the package has a file of its configs, named with the folder ``configs`` or without."""
    return shipped_folder("configs") / Path(*path.parts[path.parts[:1] == ("configs",) :])


class _BoundedFile(CfgNode):
    """Opens config files whose content does not grow out of bounds when it is read."""

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[str]:
        if Path(filename).exists() and not Path(filename).is_file():
            raise InputError(f"{filename}: not a regular file")
        with super()._open_cfg(filename) as file:
            text = file.read(MAX_BYTES + 1)
        check_yaml(filename, text)
        return io.StringIO(text)


def _merge_file(cfg: CfgNode, config_file: Path) -> None:
    try:
        # Detectron2's default, allow_unsafe=True, would execute code from the yaml. RetinaNet's in
        # its package has some, which is as much to be trusted as the rest of the package.
        package = Path(detectron2.__file__).resolve().parent
        trusted = package in config_file.resolve().parents
        # The file and all that its _BASE_ leads to.
        _BoundedFile.load_yaml_with_base(str(config_file), allow_unsafe=trusted)
        cfg.merge_from_file(str(config_file), allow_unsafe=trusted)
    except yaml.YAMLError as error:
        raise InputError(f"{config_file} is not plain yaml: {error}") from error
    except OSError as error:
        raise InputError(f"{config_file}: cannot be read: {error}") from error
    except RecursionError as error:
        raise InputError(f"{config_file}: its _BASE_ leads back to itself") from error
    except (TypeError, AttributeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{config_file}: not a config: it must hold sections of KEY: VALUE lines, as the files "
            "in configs/ do"
        ) from error
    except (KeyError, AssertionError, ValueError) as error:
        raise InputError(_explain(cfg, error, str(config_file))) from error


def _merge_includes(cfg: CfgNode, defaults: CfgNode) -> None:
    """Merge the files that ``INCLUDE`` names and empty it: the saved config does not need them.

    Their ``DATASETS.TUNED_ON`` adds up with the config file's: a search was tuned on its data
    with other included files.
    """
    names, cfg.INCLUDE = tuple(cfg.INCLUDE), ()
    tuned_on = list(cfg.DATASETS.TUNED_ON)
    for name in names:
        if not Path(str(name)).is_file():
            raise InputError(f"INCLUDE {name}: no such file")
        cfg.DATASETS.TUNED_ON = ()
        _merge_file(cfg, Path(str(name)))
        check_values(cfg, defaults)
        tuned_on += cfg.DATASETS.TUNED_ON
        if cfg.INCLUDE:
            raise InputError(f"{name}: an included file cannot include others; name them all")
    cfg.DATASETS.TUNED_ON = tuple(dict.fromkeys(tuned_on))


def _merge_options(cfg: CfgNode, options: list[tuple[str, str]]) -> None:
    for key, _ in options:
        if key in IN_EPOCHS:
            # Who types iterations does not want them replaced by those of the file's epochs.
            cfg.merge_from_list([IN_EPOCHS[key], 0])
    for key, value in options:
        try:
            cfg.merge_from_list([key, value])
        except (KeyError, AssertionError, ValueError, TypeError, AttributeError) as error:
            raise InputError(_explain(cfg, error, f"command line, {key} {value}", key)) from error
        except (RecursionError, MemoryError) as error:
            raise InputError(f"command line, {key}: its value is nested too deep") from error


def _explain(cfg: CfgNode, error: Exception, where: str, key: str = "") -> str:
    """Turn an error of yacs into one line, with the nearest existing key."""
    message = str(error.args[0] if error.args else error)
    known = [name for name, _ in config_items(cfg)]
    unknown = re.match(r"Non-existent (?:config )?key: ?(\S*)", message)
    if unknown or (key and key not in known):
        key = key or (unknown.group(1) if unknown else "")
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{where}: there is no config key {key}{hint}"
    inside = next((each for each in known if key and each.startswith(f"{key}.")), None)
    if inside:
        return f"{where}: {key} is a section; name a key in it, such as {inside}"
    types = re.match(
        r"Type mismatch \(<class '([\w.]+)'> vs\. <class '([\w.]+)'>\) with values "
        r"\((.*) vs\. .*\) for config key: (\S+)",
        message,
        re.DOTALL,
    )
    if types:
        wanted, found, value, name = types.groups()
        message = f"{name} must be of type {wanted}, such as {value}, not {found}"
        if wanted.endswith(CfgNode.__name__):
            message = f"{name} is a section of KEY: VALUE lines, not a value"
    return f"{where}: {message}"
