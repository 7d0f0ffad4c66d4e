from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw

from cityscapes_maskrcnn.synthetic.canvas import Camera, Canvas, Part, outline
from cityscapes_maskrcnn.synthetic.people import (
    bicycle_parts,
    motorcycle_parts,
    person_parts,
    rider_parts,
)
from cityscapes_maskrcnn.synthetic.solids import Pose, Vehicle, VehiclePainter
from cityscapes_maskrcnn.synthetic.vehicles import make_bus, make_car, make_train, make_truck

HEIGHT, WIDTH = 256, 512
# Straight ahead is in the middle; at 10 m one metre is 56.3 pixels (563 / 10).
CAMERA = Camera(HEIGHT, WIDTH, 563.0, (256.0, 108.0), 1.3)
SUN = np.array([0.5, 0.7, -0.5])
HEADINGS = (0.0, 0.6, np.pi / 2, 2.2, np.pi, -0.9)


def _painted(parts: list[Part]) -> npt.NDArray[np.bool_]:
    canvas = Canvas(HEIGHT, WIDTH, 2)
    canvas.pixels[:] = (255, 0, 255)
    canvas.paint(parts)
    image = canvas.finished().astype(int)
    return np.asarray(np.abs(image - (255, 0, 255)).sum(axis=2) > 120)


def _outlined(parts: list[Part]) -> npt.NDArray[np.bool_]:
    mask = Image.new("L", (WIDTH, HEIGHT), 0)
    polygon = outline(parts, HEIGHT, WIDTH)
    ImageDraw.Draw(mask).polygon([(x, y) for x, y in polygon], fill=1)
    return np.asarray(mask, dtype=bool)


def test_camera_projects_by_similar_triangles() -> None:
    # 1 m to the right at 10 m: 563 / 10 = 56.3 pixels from the middle; the ground is 1.3 m below
    # the camera: 1.3 * 56.3 = 73.19 below the horizon.
    points = CAMERA.project([(0.0, 1.3, 5.0), (1.0, 0.0, 10.0), (1.0, 0.0, 20.0)])
    expected = [[256.0, 108.0], [312.3, 181.19], [284.15, 144.595]]
    assert np.allclose(points, expected)
    assert np.isfinite(CAMERA.project([(1.0, 0.0, 0.0), (1.0, 0.0, -3.0)])).all()


def test_pose_turns_to_the_right_and_back() -> None:
    pose = Pose(2.0, 10.0, np.pi / 2)  # looks along +X: forward is +X, right is -Z
    local = np.array([[0.0, 0.5, 1.0], [1.0, 0.0, 0.0]])
    assert np.allclose(pose.world(local), [[3.0, 0.5, 10.0], [2.0, 0.0, 9.0]])
    assert np.allclose(pose.local(pose.world(local)), local)


def test_outline_of_a_square_and_of_nothing() -> None:
    square = np.array([(10.0, 20.0), (14.0, 20.0), (14.0, 24.0), (10.0, 24.0)])
    polygon = outline([Part(square, None)], 64, 64)
    # Pixels are named by their index: 13, which reaches from 13 to 14, is the last one inside;
    # drawing includes the edge, which may add one.
    assert {x for x, _ in polygon} <= {9, 10, 13, 14}
    assert {y for _, y in polygon} <= {19, 20, 23, 24}
    assert outline([], 64, 64) == []
    assert outline([Part(square, None, solid=False)], 64, 64) == []
    assert outline([Part(square + 500, None)], 64, 64) == []


@pytest.mark.parametrize("make", [make_car, make_truck, make_bus, make_train])
def test_vehicles_are_where_their_outlines_say(
    make: Callable[[np.random.Generator], Vehicle],
) -> None:
    rng = np.random.default_rng(0)
    for heading in HEADINGS:
        for x in (-3.5, 0.0, 3.0):
            vehicle = make(rng)
            parts = VehiclePainter(CAMERA, Pose(x, 32.0, heading), vehicle, SUN).parts()
            seen, drawn = _painted(parts), _outlined(parts)
            # Between the wheels one may see through; the outline may be a pixel too wide.
            assert (seen & drawn).sum() / (seen | drawn).sum() > 0.85, (heading, x)
            top = np.nonzero(drawn)[0].min()
            # The nearest part of the roof is up to half a length nearer than the middle.
            lowest_top = 108 + (1.3 - vehicle.height) * 563 / (32 + vehicle.length / 2)
            highest_top = 108 + (1.3 - vehicle.height) * 563 / (32 - vehicle.length / 2)
            assert highest_top - 2 <= top <= lowest_top + 2


@pytest.mark.parametrize("kind", ["person", "bicycle", "motorcycle", "rider", "motor rider"])
def test_figures_are_where_their_outlines_say(kind: str) -> None:
    rng = np.random.default_rng(0)
    for heading in HEADINGS:
        pose = Pose(1.0, 12.0, heading)
        if "rider" in kind:
            parts = rider_parts(CAMERA, pose, rng, 1.0, kind == "motor rider")
        else:
            figures = {
                "person": person_parts,
                "bicycle": bicycle_parts,
                "motorcycle": motorcycle_parts,
            }
            parts = figures[kind](CAMERA, pose, rng, 1.0)
        seen, drawn = _painted(parts), _outlined(parts)
        assert seen.sum() > 100
        # A bicycle's outline lacks its thinnest ends and has what is seen between its spokes.
        assert (seen & drawn).sum() / seen.sum() > (0.9 if kind == "bicycle" else 0.94), heading
        assert seen.sum() / drawn.sum() > (0.4 if kind == "bicycle" else 0.72), heading
