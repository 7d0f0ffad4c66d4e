"""Three threads that read ahead, predict, and write, with a few frames in memory each."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from cityscapes_maskrcnn.deploy.frame_detections import FrameDetections, FrameModel
from cityscapes_maskrcnn.deploy.frames import Frame, FrameSource
from cityscapes_maskrcnn.utils.errors import InputError

Item = TypeVar("Item")


class PredictionStream:
    """Predicts the frames of a source, in their order.

    The caller's thread runs the model; a second one reads and resizes frames ahead, a third one
    pastes masks and calls ``write``.

    Args:
        source: of the frames.
        model: predicts them.
        write: gets every frame with its detections.
        depth: number of frames that may wait before the model, and as many behind it.

    Attributes:
        num_dropped: frames of a camera that came while the model was busy.
    """

    def __init__(
        self,
        source: FrameSource,
        model: FrameModel,
        write: Callable[[Frame, FrameDetections], None],
        depth: int,
    ) -> None:
        self._source = source
        self._model = model
        self._write = write
        self._depth = depth
        # Of a camera the newest frames count.
        self._ahead = ReadAhead(self._prepared(), depth, newest=source.live)

    @property
    def num_dropped(self) -> int:
        """See the class."""
        return self._ahead.num_dropped

    def run(self, on_frame: Callable[[], object]) -> None:
        """Predict all frames, or until :meth:`stop` is called.

        Args:
            on_frame: called after each frame, in this thread.

        Raises:
            InputError: there are no more frames though there should be, or one cannot be predicted
                or written. All before it are written.
        """
        behind = WriteBehind(self._finish, self._depth)
        waiting: deque[Frame] = deque()

        def images() -> Iterator[Any]:
            for frame, prepared in self._ahead:
                waiting.append(frame)
                yield prepared

        self._ahead.start()
        try:
            for output in self._model.predict(images()):
                behind.put((waiting.popleft(), output))
                on_frame()
        finally:
            self._ahead.stop()
            behind.close()
        if self._ahead.error is not None:
            raise self._ahead.error

    def stop(self) -> None:
        """Read no more frames, from any thread; those that the model has got are finished."""
        self._ahead.stop()

    def _prepared(self) -> Iterator[tuple[Frame, Any]]:
        for frame in self._source:
            try:
                prepared = self._model.prepare(frame.image, frame.name)
            except InputError as error:
                if self._source.name is not None:
                    raise  # a video's frames are all alike
                self._source.leave_out(error)
                continue
            yield frame, prepared

    def _finish(self, item: tuple[Frame, Any]) -> None:
        frame, output = item
        height, width = frame.image.shape[:2]
        self._write(frame, self._model.detections(output, height, width))


class ReadAhead(Generic[Item]):
    """Takes items in a thread of its own, a few ahead of who iterates over this.

    Args:
        items: with or without end.
        depth: number of items that wait, at most.
        newest: the items do not wait: where there is no room, the oldest is dropped.

    Attributes:
        error: what ``items`` raised; iteration ends there as at the end of the items.
        num_dropped: see ``newest``.
    """

    def __init__(self, items: Iterable[Item], depth: int, newest: bool = False) -> None:
        self._items = items
        self._depth = depth
        self._newest = newest
        self._queue: deque[Item] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._stopped = False
        self.error: Exception | None = None
        self.num_dropped = 0

    def start(self) -> None:
        """Begin to take items."""
        # A daemon, since it may wait for a camera for ever.
        threading.Thread(target=self._take_all, daemon=True).start()

    def stop(self) -> None:
        """End the iteration and the thread, as soon as it has its next item."""
        with self._changed:
            self._stopped = True
            self._queue.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Item]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._ended or self._stopped)
                if not self._queue:
                    return
                item = self._queue.popleft()
                self._changed.notify_all()
            yield item

    def _take_all(self) -> None:
        try:
            for item in self._items:
                if not self._add(item):
                    break
        except Exception as error:
            self.error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _add(self, item: Item) -> bool:
        """Add an item as soon as there is room; False: nobody wants it any more."""
        with self._changed:
            if self._newest and len(self._queue) == self._depth:
                self._queue.popleft()
                self.num_dropped += 1
            self._changed.wait_for(lambda: len(self._queue) < self._depth or self._stopped)
            if not self._stopped:
                self._queue.append(item)
                self._changed.notify_all()
            return not self._stopped


class WriteBehind(Generic[Item]):
    """Gives items to a function in a thread of its own, in their order.

    Args:
        function: gets one item after the other, none after one for which it raises.
        depth: number of items that wait, at most.
    """

    def __init__(self, function: Callable[[Item], None], depth: int) -> None:
        self._function = function
        # An item counts as waiting until it is done.
        self._room = threading.BoundedSemaphore(depth)
        self._executor = ThreadPoolExecutor(1)
        self._error: BaseException | None = None

    def put(self, item: Item) -> None:
        """Hand over an item, as soon as there is room.

        Raises:
            Exception: what the function raised for an earlier one.
        """
        self._room.acquire()
        if self._error is not None:
            self._room.release()
            raise self._error
        self._executor.submit(self._call, item)

    def close(self) -> None:
        """Wait until all items are done, and end the thread.

        Raises:
            Exception: what the function raised.
        """
        self._executor.shutdown()
        if self._error is not None:
            raise self._error

    def _call(self, item: Item) -> None:
        try:
            if self._error is None:
                self._function(item)
        except BaseException as error:  # the executor would keep it in a future
            self._error = error
        finally:
            self._room.release()
