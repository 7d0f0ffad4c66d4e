from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_a_video_drives_into_each_image(tool: Run, small_root: Path, tmp_path: Path) -> None:
    images = sorted((small_root / "cityscapes" / "leftImg8bit" / "val").glob("*/*.png"))[:2]
    video = tmp_path / "drive.avi"
    done = tool(".ci/make_video.py", *images, "--output", video, "--frames", 3, "--fps", 5)
    assert done.returncode == 0, done.stderr
    capture = cv2.VideoCapture(str(video))
    assert capture.get(cv2.CAP_PROP_FPS) == 5
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1].astype(int))
    assert len(frames) == 6
    first = cv2.imread(str(images[0])).astype(int)
    # JPEG's losses alone; two frames later a sixth is cut off.
    assert np.abs(frames[0] - first).mean() < 8 < np.abs(frames[2] - first).mean()

    done = tool(".ci/make_video.py", tmp_path / "none.png", "--output", video)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
