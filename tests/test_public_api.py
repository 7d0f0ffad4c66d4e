"""What a Detectron2 user imports; tests/tools/test_documents.py runs the examples."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

import cityscapes_maskrcnn
from cityscapes_maskrcnn import add_cityscapes_maskrcnn_config, register_all

PROJECT = Path(__file__).parents[1]
CONFIGS = PROJECT / "configs"
ALL = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))


@pytest.mark.parametrize("name", ALL)
def test_the_keys_are_enough_to_build_every_config(name: str) -> None:
    cfg = get_cfg()
    add_cityscapes_maskrcnn_config(cfg)
    cfg.merge_from_file(str(CONFIGS / name), allow_unsafe=False)
    cfg.MODEL.DEVICE = "cpu"
    # As fitted: a search and a tuned stage leave them open.
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = cfg.MODEL.ANCHOR_GENERATOR.SIZES or [[32]]
    assert sum(parameter.numel() for parameter in build_model(cfg).parameters()) > 0


def test_torch_does_not_lecture_on_worker_processes() -> None:
    code = (
        "import cityscapes_maskrcnn\n"
        "from torch.utils.data import DataLoader\n"
        "DataLoader([0], num_workers=10_000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_public_names() -> None:
    assert set(cityscapes_maskrcnn.__all__) <= set(dir(cityscapes_maskrcnn))
    for name in cityscapes_maskrcnn.__all__:
        assert getattr(cityscapes_maskrcnn, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Trianer'"):
        _ = cityscapes_maskrcnn.Trianer


@pytest.mark.parametrize(
    ("name", "images", "evaluator"),
    [
        ("cityscapes_instance_val", 6, "cityscapes_instance"),
        ("cityscapes_fine_semantic_train", 8, "cityscapes_sem_seg"),
        # Detectron2's own names.
        ("cityscapes_fine_instance_seg_train", 8, "cityscapes_instance"),
        ("cityscapes_fine_instance_seg_test", 2, "cityscapes_instance"),
        ("cityscapes_fine_sem_seg_val", 6, "cityscapes_sem_seg"),
    ],
)
def test_datasets_load_with_their_metadata(
    name: str, images: int, evaluator: str, small_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_root))
    register_all()
    assert len(DatasetCatalog.get(name)) == images
    metadata = MetadataCatalog.get(name)
    assert metadata.evaluator_type == evaluator
    assert metadata.image_dir.startswith(f"{small_root}/cityscapes/leftImg8bit/")
    assert metadata.thing_classes[2] == "car"
    assert metadata.stuff_classes[13] == "car"
