"""Training targets of the mask head, drawn from polygons on the boxes' device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

# COCO's rasterizer walks along a polygon in fifths of a pixel.
_STEPS: Final = 5
# Detectron2 divides by no side of a box below this.
_SMALLEST_SIDE: Final = 0.1
# Pairs of an edge and a column that are computed at once; 2**22 take 120 MB.
_CHUNK: Final = 2**22


class FlatPolygons:
    """The polygons of an image's instances as tensors: ``gt_masks`` that a GPU can rasterize.

    It takes the place of :class:`detectron2.structures.PolygonMasks` in ``Instances``, with equal
    targets. Indexing copies no polygons, and nothing but indexing by a boolean mask makes the host
    wait for a GPU.

    A ``DataLoader`` does not look into ``Instances``: who wants pinned memory, or a copy on another
    stream, gets at the tensors by :meth:`map_tensors`.

    Attributes:
        edges: float64 of shape (number of edges, 4): both ends (x1, y1, x2, y2) of every edge, in
            pixels of the image; the edges of an instance are consecutive.
        parts: int64 of shape (number of edges,): which polygon of its instance an edge is part of.
        starts: int64 of shape (N,): the first edge of each instance.
        sizes: int64 of shape (N,): its number of edges.
        max_edges: no instance has more edges; known to the host, as are
        max_parts: no instance has more polygons.
    """

    def __init__(
        self,
        edges: Tensor,
        parts: Tensor,
        starts: Tensor,
        sizes: Tensor,
        max_edges: int,
        max_parts: int,
    ) -> None:
        self.edges = edges
        self.parts = parts
        self.starts = starts
        self.sizes = sizes
        self.max_edges = max_edges
        self.max_parts = max_parts

    @classmethod
    def from_polygons(cls, instances: Sequence[Sequence[np.ndarray]]) -> FlatPolygons:
        """Flatten the polygons of instances, for example ``PolygonMasks.polygons``.

        Args:
            instances: of each instance its polygons, each [x0, y0, x1, y1, ...] of at least three
                vertices, in pixels.
        """
        polygons = [polygon for instance in instances for polygon in instance]
        vertices = np.concatenate([np.empty(0), *polygons]).astype(np.float64).reshape(-1, 2)
        lengths = np.array([len(polygon) // 2 for polygon in polygons], dtype=np.int64)
        ends = np.cumsum(lengths)
        following = np.arange(1, len(vertices) + 1)
        following[ends - 1] = ends - lengths
        numbers = [number for instance in instances for number in range(len(instance))]
        sizes = np.array(
            [sum(len(polygon) // 2 for polygon in instance) for instance in instances],
            dtype=np.int64,
        )
        return cls(
            edges=torch.from_numpy(np.concatenate([vertices, vertices[following]], axis=1)),
            parts=torch.from_numpy(np.repeat(np.array(numbers, dtype=np.int64), lengths)),
            starts=torch.from_numpy(np.cumsum(sizes) - sizes),
            sizes=torch.from_numpy(sizes),
            max_edges=int(sizes.max(initial=0)),
            max_parts=max(map(len, instances), default=0),
        )

    @staticmethod
    def cat(masks: Sequence[FlatPolygons]) -> FlatPolygons:
        """Join the instances of several objects (at least one) in their order."""
        starts = []
        number_of_edges = 0
        for one in masks:
            starts.append(one.starts + number_of_edges)
            number_of_edges += len(one.edges)
        return FlatPolygons(
            edges=torch.cat([one.edges for one in masks]),
            parts=torch.cat([one.parts for one in masks]),
            starts=torch.cat(starts),
            sizes=torch.cat([one.sizes for one in masks]),
            max_edges=max(one.max_edges for one in masks),
            max_parts=max(one.max_parts for one in masks),
        )

    def __getstate__(self) -> dict[str, Any]:
        # As arrays: a loading worker hands over each tensor as an open file, of which a process may
        # have 1,024, often.
        return {
            name: value.numpy(force=True) if isinstance(value, Tensor) else value
            for name, value in vars(self).items()
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, torch.from_numpy(value) if isinstance(value, np.ndarray) else value)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.edges.device

    def __len__(self) -> int:
        return len(self.starts)

    def __repr__(self) -> str:
        return f"FlatPolygons(num_instances={len(self)})"

    def __getitem__(self, item: int | slice | list[int] | Tensor) -> FlatPolygons:
        """Select instances as ``PolygonMasks`` does; an integer gives an object of one."""
        return FlatPolygons(
            edges=self.edges,
            parts=self.parts,
            starts=self.starts[item].reshape(-1),
            sizes=self.sizes[item].reshape(-1),
            max_edges=self.max_edges,
            max_parts=self.max_parts,
        )

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> FlatPolygons:
        """Return an object of the function's results for every tensor."""
        return FlatPolygons(
            edges=function(self.edges),
            parts=function(self.parts),
            starts=function(self.starts),
            sizes=function(self.sizes),
            max_edges=self.max_edges,
            max_parts=self.max_parts,
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> FlatPolygons:
        """Copy to a device, as :meth:`torch.Tensor.to` does; MPS has no float64, so not there."""
        if torch.device(device).type == "mps":
            return self
        return self.map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    @torch.no_grad()
    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Rasterize each instance inside its box, bit for bit as ``PolygonMasks`` does.

        Args:
            boxes: (N, 4), x1, y1, x2, y2 in pixels of the image.
            mask_size: height and width M of a mask.

        Returns:
            Bool of shape (N, M, M), on the boxes' device.
        """
        assert len(boxes) == len(self), f"{len(boxes)} boxes for {len(self)} instances"
        if boxes.device != self.device:
            return self.crop_and_resize(boxes.to(self.device), mask_size).to(boxes.device)
        if len(self) == 0 or self.max_edges == 0:
            return boxes.new_zeros((len(self), mask_size, mask_size), dtype=torch.bool)
        cells = mask_size * (self.max_edges + self.max_parts * mask_size)
        step = max(1, _CHUNK // cells)
        masks = [
            self[start : start + step]._rasterize(boxes[start : start + step], mask_size)
            for start in range(0, len(self), step)
        ]
        return torch.cat(masks)

    def _rasterize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Rasterize as many instances as fit into memory together.

        Args:
            boxes: as of :meth:`crop_and_resize`.
            mask_size: M.
        """
        number = torch.arange(self.max_edges, device=self.device)
        index = (self.starts[:, None] + number).clamp_(max=len(self.edges) - 1)
        edges = _scale(self.edges[index], boxes, mask_size)
        ends = edges.mul_(_STEPS).add_(0.5).trunc_()
        exists = number < self.sizes[:, None]
        instance = torch.arange(len(self), device=self.device)[:, None]
        table = instance * self.max_parts + self.parts[index]
        left = torch.minimum(ends[..., 0], ends[..., 2])
        right = torch.maximum(ends[..., 0], ends[..., 2]).masked_fill_(~exists, -torch.inf)
        # Every pair of an edge and a column: how many cross, only the device knows.
        column = torch.arange(mask_size, device=self.device)
        middle = _middle(column)
        crossed = (left[..., None] <= middle) & (middle < right[..., None])
        rows = _rows(ends[:, :, None], column, mask_size).masked_fill_(~crossed, mask_size)
        table = table[:, :, None]

        # One more row than the mask has takes what crosses a column below it, or not at all.
        shape = (len(self), self.max_parts, mask_size, mask_size + 1)
        counts = torch.zeros(shape, dtype=torch.int32, device=self.device)
        cells = (table * mask_size + column).mul_(mask_size + 1).add_(rows.to(torch.int64)).view(-1)
        counts.view(-1).scatter_add_(0, cells, counts.new_ones(1).expand(len(cells)))
        odd = counts[..., :-1].cumsum(dim=-1, dtype=torch.int32) & 1
        return odd.any(dim=1).transpose(1, 2).contiguous()


def mask_targets(instances: Sequence[Any], size: int) -> Tensor:
    """Rasterize the ground truth of regions, in their boxes.

    Args:
        instances: Detectron2's, of every image, with ``proposal_boxes`` and ``gt_masks``.
        size: height and width of a mask.

    Returns:
        Shape (M, size, size), of all images in turn.
    """
    boxes = [each.proposal_boxes.tensor for each in instances]
    masks = [each.gt_masks for each in instances]
    if all(isinstance(each, FlatPolygons) for each in masks):
        return FlatPolygons.cat(masks).crop_and_resize(torch.cat(boxes), size)
    on_host = [each.crop_and_resize(where, size) for each, where in zip(masks, boxes, strict=True)]
    return torch.cat(on_host).to(boxes[0].device)


# COCO's ``rleFrPoly`` rounds the ends of an edge to fifths of a pixel and walks from one to the
# other, a fifth at a time along the longer axis, rounding along the other. Where consecutive points
# lie on both sides of the middle of a column of pixels, between its third and its fourth fifth, all
# pixels from the upper point's row on change between inside and outside.
#
# An edge does that at most once a column, since it goes in one direction. Between edges nothing
# happens, since they share a point. (Left of and above the mask C's conversion to integers rounds
# towards it, and they may not; but no column is there, and every row there is the first.)
#
# The arithmetic is float64, operation by operation that of the walk. Two operations in one, as a
# compiler may do, would round differently.


def _scale(edges: Tensor, boxes: Tensor, mask_size: int) -> Tensor:
    """Move edges (N, E, 4) from the image to their boxes (N, 4), which fill the mask.

    The sides and the scale are computed in the boxes' precision, the edges in theirs.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    # Not ``mask_size / sides``: torch multiplies by the reciprocal, which rounds otherwise.
    scales = (torch.full_like(sides, mask_size) / sides).to(edges.dtype)
    small = sides < torch.full_like(sides, _SMALLEST_SIDE)
    scales = scales.masked_fill(small, mask_size / _SMALLEST_SIDE)
    return (edges - boxes[:, None, :2].repeat(1, 1, 2)) * scales[:, None].repeat(1, 1, 2)


def _middle(column: Tensor) -> Tensor:
    """Return the last fifth before the middle of columns."""
    return column * _STEPS + _STEPS // 2


def _rows(ends: Tensor, column: Tensor, mask_size: int) -> Tensor:
    """Find the row of the mask at which edges cross the middle of columns.

    Args:
        ends: (..., 4), float64, rounded, in fifths of a pixel.
        column: (...), int64, of a shape that broadcasts with the edges'. Each edge must cross it;
            otherwise the row means nothing.
        mask_size: number of rows M.

    Returns:
        Float64 of the common shape, whole numbers from 0 to M, M below the mask.
    """
    x, y, last_x, last_y = ends.unbind(-1)
    width, height = last_x - x, last_y - y
    steep = width.abs() < height.abs()
    # From here on "along" is the axis of the walk, which begins at the smaller coordinate, and
    # "across" the other one.
    slope = torch.where(steep, width / height, height / width)
    falling = slope < 0
    along = torch.where(steep, torch.minimum(y, last_y), torch.minimum(x, last_x))
    across = torch.where(
        steep,
        torch.where(height < 0, last_x, x),
        torch.where(width < 0, last_y, y),
    )
    # Steps from the edge's beginning. In a flat edge: to the upper one of the two points. In a
    # steep one: to the crossing, rounded; the column of that point tells whether it is the one
    # before the crossing or the one after it.
    origin = torch.where(steep, across - 0.5, along - falling.to(x.dtype))
    per_step = torch.where(steep, slope, 1.0)
    middle = _middle(column)
    steps = middle.sub(origin).div_(per_step).round_()
    point = steps.mul(slope).add_(across).add_(0.5)
    after = (point < middle + 1) == falling
    upper = torch.where(steep, steps.add_(along).add_(after, alpha=-1), point.trunc_())
    return upper.add_(_STEPS // 2).div_(_STEPS).floor_().clamp_(0, mask_size)
