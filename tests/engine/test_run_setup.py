from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine.run_setup import save_config


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    return build_config("", ["OUTPUT_DIR", str(tmp_path / "run"), "SEED", "5"])


def test_the_saved_config_is_plain_yaml(cfg: CfgNode) -> None:
    save_config(cfg, scoring=False)
    saved = Path(cfg.OUTPUT_DIR) / "config.yaml"
    content = yaml.safe_load(saved.read_text())
    assert content["SEED"] == 5
    assert content == yaml.safe_load(build_config(str(saved), []).dump())
    assert [path.name for path in saved.parent.iterdir()] == ["config.yaml"]


def test_scoring_beside_a_model_without_a_config_writes_one(cfg: CfgNode) -> None:
    saved = Path(cfg.OUTPUT_DIR) / "config.yaml"
    saved.parent.mkdir()
    (saved.parent / "model_final.pth").touch()
    save_config(cfg, scoring=True)
    assert saved.is_file()


def test_scoring_keeps_the_config_of_a_training(cfg: CfgNode) -> None:
    saved = Path(cfg.OUTPUT_DIR) / "config.yaml"
    save_config(cfg, scoring=True)
    cfg.SEED = 6
    save_config(cfg, scoring=True)
    assert yaml.safe_load(saved.read_text())["SEED"] == 6
    (saved.parent / "model_0000009.pth").touch()
    cfg.SEED = 7
    save_config(cfg, scoring=True)
    assert yaml.safe_load(saved.read_text())["SEED"] == 6
    save_config(cfg, scoring=False)
    assert yaml.safe_load(saved.read_text())["SEED"] == 7
