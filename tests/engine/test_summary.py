from __future__ import annotations

import json
from pathlib import Path

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog

from cityscapes_maskrcnn.data.registration import register_all
from cityscapes_maskrcnn.engine.summary import write_scores


def test_augmented_scores_stand_beside_plain_ones(small_root: Path, tmp_path: Path) -> None:
    """With one dataset and with several, which Detectron2 nests, and names, differently."""
    register_all(small_root)
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    names = ("cityscapes_instance_val", "cityscapes_instance_val_part1of4")
    plain, augmented = {"segm": {"AP": 1.0}}, {"segm": {"AP": 2.0}}
    expected = {"segm": {"AP": 1.0}, "segm_TTA": {"AP": 2.0}}

    cfg.DATASETS.TEST = names[:1]
    write_scores(cfg, "w.pth", {**plain, "segm_TTA": augmented["segm"]}, [])
    datasets = json.loads((tmp_path / "scores.json").read_text())["datasets"]
    images = len(DatasetCatalog.get(names[0]))
    assert datasets == {names[0]: {"images": images, "results": expected}}

    cfg.DATASETS.TEST = names
    results = dict.fromkeys(names, plain) | {f"{name}_TTA": augmented for name in names}
    write_scores(cfg, "w.pth", results, [])
    datasets = json.loads((tmp_path / "scores.json").read_text())["datasets"]
    assert {name: entry["results"] for name, entry in datasets.items()} == dict.fromkeys(
        names, expected
    )
