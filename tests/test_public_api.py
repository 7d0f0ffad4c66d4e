"""What a Detectron2 user imports, and the example of the README."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

import cityscapes_maskrcnn
from cityscapes_maskrcnn import Trainer, add_cityscapes_maskrcnn_config, register_all
from cityscapes_maskrcnn.cli import build_config

PROJECT = Path(__file__).parents[1]
CONFIGS = PROJECT / "configs"
ALL = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
TINY = """
_BASE_: {base}
MODEL:
  DEVICE: cpu
  WEIGHTS: ""
  BACKBONE: {{FREEZE_AT: 0}}
  RESNETS: {{NORM: BN, STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 16, WIDTH_PER_GROUP: 8}}
  FPN: {{NORM: BN, OUT_CHANNELS: 16}}
  ROI_BOX_HEAD: {{FC_DIM: 32}}
  ROI_MASK_HEAD: {{CONV_DIM: 16}}
INPUT: {{MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}}
DATASETS: {{TRAIN: [cityscapes_instance_train], TEST: []}}
DATALOADER: {{NUM_WORKERS: 0}}
SOLVER: {{IMS_PER_BATCH: 2, EPOCHS: 0, CHECKPOINT_EPOCHS: 0, MAX_ITER: 2, WARMUP_ITERS: 0}}
TEST: {{EVAL_EPOCHS: 0, DETECTIONS_PER_IMAGE: 10}}
"""


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


def test_the_example_of_the_readme_without_detectron2s_extension(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ImportError):
        import detectron2._C  # noqa: F401
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_root))
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY.format(base=CONFIGS / "Base-MaskRCNN-R50-FPN.yaml"))
    cfg = build_config("tiny.yaml", ["OUTPUT_DIR", "output/stage_1"])
    trainer = Trainer(cfg)
    trainer.resume_or_load()
    trainer.train()
    Path("output/stage_1/config.yaml").write_text(cfg.dump())
    shutil.copy(next(small_root.glob("cityscapes/leftImg8bit/val/*/*.png")), "street.png")

    text = (PROJECT / "README.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert 0 <= float(printed.getvalue().splitlines()[-1]) <= 100
    assert Path("street_predictions.png").stat().st_size > 1000
