"""The floors of the house: who may import whom, and what works without Detectron2."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "cityscapes_maskrcnn"

# Lower floors first. A room may import from lower floors and from itself.
FLOORS = {
    "utils": 0,
    "data": 1,
    "modeling": 1,
    "config": 2,
    "config_check": 2,
    "synthetic": 2,
    "evaluation": 2,
    "visualization": 2,
    "engine": 3,
    "search": 4,
    "deploy": 4,
    "cli": 4,
    "recipe": 5,
    "benchmarks": 6,
    "report": 6,
    "commands": 7,
    "": 8,  # the public names
}

# Files of numbers and file formats only, for people who do not use Detectron2.
WITHOUT_DETECTRON2 = [
    "utils.errors",
    "utils.files",
    "utils.parallel",
    "utils.text",
    "utils.tool",
    "data.labels",
    "data.images",
    "data.annotations",
    "data.cache",
    "data.copy_paste",
    "data.dataset_statistics",
    "data.drawn_instances",
    "data.partitions",
    "data.provenance",
    "synthetic.dataset",
    "data.tree_check",
    "modeling.class_rows",
    "modeling.deeplab_weights",
    "modeling.detector_names",
    "modeling.timm_names",
    "modeling.weight_files",
    "modeling.pickle_contents",
    "modeling.safe_pickles",
    "engine.checkpoint_average",
    "engine.checkpoint_origin",
    "engine.resume_check",
    "engine.weight_conversion",
    "evaluation.masks",
    "evaluation.pasting",
    "evaluation.ground_truth_cache",
    "evaluation.image_scoring",
    "evaluation.instance_ap",
    "evaluation.result_files",
    "evaluation.result_source",
    "evaluation.coco_ap",
    "evaluation.error_analysis",
    "evaluation.telling_examples",
    "evaluation.submission_writer",
    "evaluation.submission_check",
    "visualization.evaluation_plots",
    "visualization.dataset_charts",
    "evaluation.pixel_iou",
    "modeling.drift",
    "modeling.anchors",
    "modeling.dct",
    "modeling.polygon_masks",
    "modeling.matching",
    "modeling.model_kind",
    "modeling.nms",
    "modeling.step_metrics",
    "visualization.anchor_plot",
    "visualization.image_files",
    "visualization.outcome_legend",
    "visualization.outlines",
    "deploy.frame_detections",
    "deploy.frame_drawing",
    "deploy.frames",
    "deploy.onnx_model",
    "deploy.prediction_job",
    "deploy.prediction_output",
    "deploy.prediction_stream",
    "deploy.quantization",
    "deploy.accuracy_control",
    "deploy.scoring",
    "deploy.tracking",
    "search.space",
    "recipe.performance_table",
    "report.page",
    "deploy.runtime",
]


def room_of(module: str) -> str:
    """cityscapes_maskrcnn.data.labels -> data; cityscapes_maskrcnn.cli -> cli."""
    return module.split(".")[1] if "." in module else ""


def module_name(path: Path) -> str:
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imported_modules(path: Path) -> list[str]:
    """Every project module that a file imports, anywhere in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append(node.module or "")
    return [name for name in found if name.startswith("cityscapes_maskrcnn")]


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    room = room_of(module_name(path))
    for imported in imported_modules(path):
        other = room_of(imported)
        if other and other != room:
            assert room in FLOORS, f"give {room} a floor"
            assert FLOORS[other] < FLOORS[room], f"{path} in {room} imports {imported}"


def test_module_names_are_unique() -> None:
    names = Counter(path.stem for path in FILES if path.stem != "__init__")
    assert not [name for name, count in names.items() if count > 1]


@pytest.mark.parametrize("room", ["data", "evaluation", "visualization", "engine", "search"])
def test_no_room_below_cli_needs_generated_scenes(room: str) -> None:
    imported = {name for path in (PACKAGE / room).rglob("*.py") for name in imported_modules(path)}
    assert not [name for name in imported if room_of(name) == "synthetic"]


def test_no_circles() -> None:
    # The package itself imports nothing: its names are resolved when they are used.
    graph = {
        module_name(path): imported_modules(path)
        for path in FILES
        if path != PACKAGE / "__init__.py"
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail, module])
        if module not in done:
            for imported in graph.get(module, []):
                visit(imported, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_numeric_files_work_without_detectron2() -> None:
    # None in sys.modules makes every import of that name fail, also from inside dependencies.
    code = "import sys; sys.modules['detectron2'] = None\n" + "\n".join(
        f"import cityscapes_maskrcnn.{name}" for name in WITHOUT_DETECTRON2
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_imports_register_modeling_parts_but_no_datasets() -> None:
    code = (
        "from cityscapes_maskrcnn import add_cityscapes_maskrcnn_config\n"
        "from detectron2.modeling import BACKBONE_REGISTRY, SEM_SEG_HEADS_REGISTRY\n"
        "from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY, ROI_HEADS_REGISTRY\n"
        "BACKBONE_REGISTRY.get('build_dilated_resnet_backbone')\n"
        "ROI_HEADS_REGISTRY.get('BatchedROIHeads')\n"
        "SEM_SEG_HEADS_REGISTRY.get('TorchvisionDeepLabV3Head')\n"
        "PROPOSAL_GENERATOR_REGISTRY.get('BatchedRPN')\n"
        "import cityscapes_maskrcnn.cli, cityscapes_maskrcnn.engine.trainer, sys\n"
        "assert not {'wandb', 'mlflow', 'torch.utils.tensorboard'} & {*sys.modules}\n"
        "from detectron2.data import DatasetCatalog\n"
        "assert not [n for n in DatasetCatalog if n.startswith('cityscapes_instance')]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
