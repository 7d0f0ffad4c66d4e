"""Synthetic street scenes: an image of a random street and its annotation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from cityscapes_maskrcnn.data.labels import THING_CLASSES
from cityscapes_maskrcnn.synthetic.backdrop import (
    ROOF_DEPTH,
    Light,
    Wall,
    make_light,
    paint_sky,
    paint_wall,
    shadow_map,
    texture_ground,
)
from cityscapes_maskrcnn.synthetic.canvas import Camera, Canvas, Part, blend, outline
from cityscapes_maskrcnn.synthetic.furniture import Pieces
from cityscapes_maskrcnn.synthetic.label_images import Annotation, visible_areas
from cityscapes_maskrcnn.synthetic.placing import Composer
from cityscapes_maskrcnn.synthetic.road import (
    Street,
    border_frame,
    make_street,
    paint_ego,
    paint_ground,
    paint_marks,
)


@dataclass(frozen=True)
class Scene:
    """An image and its annotation.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        annotation: the content of a ``*_gtFine_polygons.json``: ``imgHeight``, ``imgWidth`` and
            ``objects``, each with ``label``, ``polygon`` and, rarely, ``deleted``.
    """

    image: npt.NDArray[np.uint8]
    annotation: Annotation


def render_scene(rng: np.random.Generator, height: int, width: int) -> Scene:
    """Draw a random street and annotate it.

    The same generator state gives the same street at every size of the same shape; a smaller
    image has fewer objects, because those of a few pixels are left out.

    Args:
        rng: source of all randomness.
        height: rows of the image, at least 64.
        width: columns of the image, at least 128.
    """
    street_rng, place_rng, paint_rng, end_rng = rng.spawn(4)
    camera = Camera(
        height, width, 2.2 * height,
        ((0.5 + street_rng.uniform(-0.07, 0.07)) * width, street_rng.uniform(0.40, 0.45) * height),
        street_rng.uniform(1.25, 1.45),
    )  # fmt: skip
    light, street = make_light(street_rng), make_street(street_rng)
    busy = float(np.clip(street_rng.lognormal(-0.05, 0.4), 0.3, 1.8))
    keep = min(1.0, 0.35 + 0.65 * (height / 1024) ** 0.5)
    composer = Composer(place_rng, camera, street, light, keep)
    composer.place_furniture()
    if street_rng.random() > 0.04:
        composer.place_vehicles(busy)
        composer.place_people(busy)
        composer.place_cycles(busy)

    canvas = Canvas(height, width, 2)
    pieces: Pieces = []
    paint_sky(canvas, camera, paint_rng, light)
    horizon = camera.center[1] + 1
    sky = np.array([(0.0, 0.0), (width, 0.0), (width, horizon), (0.0, horizon)])
    pieces.append(("sky", [Part(sky, None)]))
    pieces += paint_ground(canvas, camera, street, paint_rng)
    paint_marks(canvas, camera, street, paint_rng)
    shadows = shadow_map(camera, composer.shadows, light)
    texture_ground(canvas, camera, paint_rng, shadows)
    pieces += _paint_buildings(canvas, camera, street, paint_rng, light)
    objects: list[dict[str, Any]] = []
    for label, parts in pieces:
        polygon = outline(parts, height, width)
        if polygon:
            objects.append({"label": label, "polygon": polygon})
    for item in sorted(composer.items, key=lambda item: -item.distance):
        for label, parts in item.pieces:
            polygon = outline(parts, height, width)
            if polygon and _large_enough(polygon):
                objects.append({"label": label, "polygon": polygon})
                canvas.paint(parts)
    hood = paint_ego(canvas, paint_rng)
    canvas.paint(hood)
    objects += _void(hood, height, width)
    annotation = _tidy({"imgHeight": height, "imgWidth": width, "objects": objects}, end_rng)
    return Scene(_develop(canvas.finished(), end_rng), annotation)


def _paint_buildings(
    canvas: Canvas, camera: Camera, street: Street, rng: np.random.Generator, light: Light
) -> Pieces:
    """House fronts across the end of the street and along both sides, far to near."""
    pieces: Pieces = []
    reach = 0.7 * camera.width / camera.pixels_per_metre(street.length)
    x = min(street.left_wall - 5, -reach)
    while x < max(street.right_wall + 5, reach):
        size = rng.uniform((10, 9, -1.5), (18, 17, 5)).tolist()
        wall = Wall((x, street.length), (1.0, 0.0), size[0], size[1], max(size[2], 0.0))
        pieces.append(("building", paint_wall(canvas, camera, wall, rng, light, 0.9)))
        x += wall.length
    rows: list[tuple[float, float, float]] = []
    sides = ((street.left_wall, street.green[0]), (street.right_wall, street.green[1]))
    for x, green in sides:
        z = 1.0
        while z < street.length - 4 and not green:
            length = min(rng.uniform(9, 22), street.length - z)
            if street.crossing is not None and z < street.crossing + 3 < z + length:
                length, gap = street.crossing + 3 - z, street.crossing + 11
            else:
                gap = z + length
            rows.append((z, max(length, 1.0), x))
            z = gap
    for z, length, x in sorted(rows, reverse=True):
        side = 1.0 if x > 0 else -1.0
        lit = 0.78 + 0.34 * light.strength * max(0.0, -side * float(light.sun[0]))
        height, roof = rng.uniform(9, 19), max(0.0, rng.uniform(-1.5, 5))
        far, ridge = x + side * 2 * ROOF_DEPTH, x + side * ROOF_DEPTH
        gable = [
            (x, 0, z),
            (far, 0, z),
            (far, height, z),
            (ridge, height + roof, z),
            (x, height, z),
        ]
        image = camera.project(gable)
        canvas.fill([image], blend((126, 116, 104), light.haze, light.haze_at(z)))
        wall = Wall((x, z), (0.0, 1.0), length, height, roof)
        front = paint_wall(canvas, camera, wall, rng, light, lit)
        pieces.append(("building", [Part(image, None), *front]))
    return pieces


def _void(hood: Sequence[Part], height: int, width: int) -> list[dict[str, Any]]:
    """The ignored regions that every official annotation ends with."""
    thin = max(1, round(5 * height / 1024))
    out_of_roi = border_frame(height, width, (thin, thin, thin, thin))
    border = border_frame(height, width, (2 * thin, 0, 0, thin))
    return [
        {"label": "ego vehicle", "polygon": outline(hood[:1], height, width)},
        {"label": "out of roi", "polygon": out_of_roi},
        {"label": "rectification border", "polygon": border},
    ]


def _tidy(annotation: Annotation, rng: np.random.Generator) -> Annotation:
    """Leave out what an annotator would not see.

    Objects with few visible pixels and most hidden ones are removed; now and then one stays in the
    file, marked as deleted.
    """
    objects = annotation["objects"]
    visible = visible_areas(annotation)
    faint = max(8.0, 60 * (annotation["imgHeight"] / 1024) ** 2)
    kept, gone = [], []
    for item, area in zip(objects, visible.tolist(), strict=True):
        counted = item["label"].removesuffix("group") in THING_CLASSES
        whole = cv2.contourArea(np.asarray(item["polygon"], dtype=np.int32)) if counted else 0.0
        chance = rng.random()
        if counted and area == 0 and chance > 0.12:
            gone.append(item)
        elif not counted or area == 0 or area >= max(faint, 0.03 * whole):
            kept.append(item)
    if gone and rng.random() < 0.5:
        kept.append({**gone[0], "deleted": 1})
    return {**annotation, "objects": kept}


def _large_enough(polygon: list[list[int]]) -> bool:
    """Whether an outline is at least 5 pixels long and its box has an area of 16 or more."""
    wide, high = np.ptp(np.asarray(polygon), axis=0).tolist()
    return bool(max(wide, high) >= 5 and wide * high >= 16)


def _develop(image: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Simulate lens, sensor and weather: blur, exposure, colour cast, vignette and noise."""
    height, width = image.shape[:2]
    exposure, contrast = rng.uniform(0.86, 1.18), rng.uniform(0.84, 1.08)
    cast = np.array([rng.uniform(0.95, 1.05), rng.uniform(0.99, 1.04), rng.uniform(0.93, 1.05)])
    sigma, blur = rng.uniform(1.2, 3.5), rng.uniform(0.3, 0.75) * height / 1024
    seed = int(rng.integers(2**63))
    if blur > 0.25:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    v = (np.arange(height, dtype=np.float32) / height - 0.5)[:, None]
    u = (np.arange(width, dtype=np.float32) / width - 0.5)[None]
    vignette = 1 - 0.22 * (u * u + v * v)
    noise = np.random.Generator(np.random.SFC64(seed)).standard_normal((height, width), np.float32)
    noise *= sigma
    result = np.empty_like(image)
    levels = np.arange(256, dtype=np.float32)
    curve = 255 * exposure * (levels / 255) ** contrast
    for channel in range(3):
        plane = cv2.LUT(image[:, :, channel], (curve * cast[channel]).astype(np.float32))
        plane = plane * vignette + noise
        noise = np.roll(noise, (7, 13), (0, 1))
        result[:, :, channel] = np.clip(plane, 0, 255).astype(np.uint8)
    return result
