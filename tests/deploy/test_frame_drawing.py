from __future__ import annotations

import numpy as np
import pytest

from cityscapes_maskrcnn.data.labels import THING_CLASSES, THING_COLORS
from cityscapes_maskrcnn.deploy.frame_detections import FrameDetections
from cityscapes_maskrcnn.deploy.frame_drawing import FrameArtist
from cityscapes_maskrcnn.evaluation.masks import mask_from_bitmap

CAR, BICYCLE = 2, 7  # official colours (0, 0, 142) and (119, 11, 32), RGB


@pytest.fixture
def artist() -> FrameArtist:
    return FrameArtist(THING_CLASSES, THING_COLORS)


def detections(*boxes, category=CAR, size=(400, 800), masks=True, track_ids=None):
    """Rectangles (x0, y0, x1, y1) of one class."""
    bitmaps = []
    for x0, y0, x1, y1 in boxes:
        bitmap = np.zeros(size, bool)
        bitmap[y0:y1, x0:x1] = True
        bitmaps.append(bitmap)
    return FrameDetections(
        classes=np.full(len(boxes), category),
        scores=np.full(len(boxes), 0.87, np.float32),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        masks=[mask_from_bitmap(each) for each in bitmaps] if masks else None,
        track_ids=track_ids,
    )


def grey(height=400, width=800):
    return np.full((height, width, 3), 100, np.uint8)


@pytest.mark.parametrize("masks", [True, False])
def test_official_colours_over_the_frame(artist, masks):
    image = grey()
    picture = artist.picture(image, detections((100, 100, 400, 300), masks=masks), False)
    assert picture.shape == image.shape
    # BGR: (100 + 142) / 2, (100 + 0) / 2, (100 + 0) / 2
    np.testing.assert_allclose(picture[250, 250].astype(int), (121, 50, 50), atol=1)
    np.testing.assert_array_equal(picture[320, 250], (100, 100, 100))
    # The line on the border is lighter than both: 142 + 0.55 * (255 - 142) = 204, 0.55 * 255 = 140
    assert (picture[200, 99:102].max(axis=0) >= (165, 105, 105)).all()
    # The label lies along the upper border and is readable: white on the class colour.
    label = picture[100:125, 200:300].reshape(-1, 3)
    assert label.min() < 45
    assert label.max() > 230
    np.testing.assert_array_equal(image, grey())


def test_nothing_found(artist):
    np.testing.assert_array_equal(artist.picture(grey(), detections(), False), grey())
    assert not artist.overlay(grey(), detections(), False).any()


def test_small_frames_are_enlarged(artist):
    # 640 / 256 = 2.5
    found = detections((20, 20, 200, 110), size=(128, 256))
    picture = artist.picture(grey(128, 256), found, False)
    assert picture.shape == (3 * 128, 3 * 256, 3)
    np.testing.assert_allclose(picture[3 * 100, 3 * 100].astype(int), (121, 50, 50), atol=1)
    np.testing.assert_array_equal(picture[3 * 115, 3 * 100], (100, 100, 100))


def test_overlay_over_the_frame_gives_the_picture(artist):
    found = detections((100, 100, 400, 300), (300, 150, 500, 390))
    overlay = artist.overlay(grey(), found, False).astype(float)
    assert overlay.shape == (400, 800, 4)
    assert overlay[50, 50].tolist() == [0, 0, 0, 0]
    np.testing.assert_allclose(overlay[250, 150], (142, 0, 0, 127.5), atol=2)
    alpha = overlay[:, :, 3:] / 255
    composed = grey() * (1 - alpha) + overlay[:, :, :3] * alpha
    picture = artist.picture(grey(), found, False)
    np.testing.assert_allclose(composed, picture.astype(float), atol=2.5)


def test_holes_stay_open(artist):
    bitmap = np.zeros((400, 800), bool)
    bitmap[100:300, 100:500] = True
    bitmap[200:260, 250:350] = False
    found = detections((100, 100, 500, 300))
    found.masks[0] = mask_from_bitmap(bitmap)
    picture = artist.picture(grey(), found, False)
    np.testing.assert_array_equal(picture[230, 300], (100, 100, 100))
    np.testing.assert_allclose(picture[280, 300].astype(int), (121, 50, 50), atol=1)


def test_shades_of_neighbours(artist):
    boxes = ((100, 100, 250, 300), (400, 100, 550, 300))

    def inside(in_motion, track_ids=None):
        found = detections(*boxes, track_ids=track_ids)
        picture = artist.picture(grey(), found, in_motion)
        return picture[280, 150].tolist(), picture[280, 450].tolist()

    left, right = inside(False)
    assert left != right
    left, right = inside(True)
    assert left == right
    # The shade belongs to the number: it stays when they change places.
    left, right = inside(True, np.array([3, 2]))
    assert left != right
    assert inside(True, np.array([2, 3])) == (right, left)


def test_label_tells_class_number_and_score(artist, monkeypatch):
    import cityscapes_maskrcnn.deploy.frame_drawing as module

    texts = []
    original = module._text_coverage

    def note(text, *rest):
        texts.append(text)
        return original(text, *rest)

    monkeypatch.setattr(module, "_text_coverage", note)
    found = detections((100, 100, 400, 300), (500, 100, 700, 300), track_ids=np.array([12, 0]))
    artist.picture(grey(), found, True)
    artist.picture(grey(), detections((9, 9, 99, 99), category=BICYCLE), True)
    assert texts == ["car #12  87%", "car  87%", "bicycle  87%"]


@pytest.mark.parametrize("box", [(0, 0, 800, 400), (799, 399, 800, 400), (0, 0, 1, 1)])
def test_objects_on_the_border(artist, box):
    assert artist.picture(grey(), detections(box), False).shape == (400, 800, 3)
    assert artist.overlay(grey(), detections(box), False).any()
