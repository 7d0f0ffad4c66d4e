from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cityscapes_maskrcnn.data import image_cache
from cityscapes_maskrcnn.data.image_cache import ImageCache
from cityscapes_maskrcnn.utils.errors import InputError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CITYSCAPES_MASKRCNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture
def image(tmp_path: Path) -> str:
    return write(tmp_path / "image.png", 1)


def write(path: Path, seed: int) -> str:
    pixels = np.random.default_rng(seed).integers(256, size=(20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def pixels_of(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_an_image_is_decoded_once_for_all_runs(
    folder: Path, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = pixels_of(image)
    first = ImageCache("disk", "RGB").read(image)
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(ImageCache("disk", "BGR").read(image), expected[..., ::-1])

    def decode(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(image_cache, "read_image", decode)
    cache = pickle.loads(pickle.dumps(ImageCache("disk", "RGB")))
    for _ in range(2):
        pixels = cache.read(image)
        np.testing.assert_array_equal(pixels, expected)
        pixels += 1  # of this process alone
    # One of each format, 64 bytes and 20 x 30 x 3 pixels each.
    files = list(folder.glob("*/*"))
    assert [file.stat().st_size for file in files] == [1864, 1864]


def test_a_changed_image_replaces_its_file(folder: Path, image: str) -> None:
    cache = ImageCache("disk", "RGB")
    cache.read(image)
    write(Path(image), 2)
    os.utime(image, (1, 1))
    np.testing.assert_array_equal(cache.read(image), pixels_of(image))
    assert len(list(folder.glob("*/*"))) == 1


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda data: data[:-1], "its size is wrong"),
        (lambda data: data[:-9] + b"x" + data[-8:], "its checksum is wrong"),
        (lambda data: data[:30], "its size is wrong"),
        (lambda data: data[:0], "its size is wrong"),
        # Height and width in each other's place.
        (lambda data: data[:8] + data[12:16] + data[8:12] + data[16:], "its checksum is wrong"),
    ],
)
def test_a_damaged_file_is_written_anew_with_a_warning(
    folder: Path,
    image: str,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[bytes], bytes],
    problem: str,
) -> None:
    ImageCache("disk", "RGB").read(image)
    (file,) = folder.glob("*/*")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    np.testing.assert_array_equal(ImageCache("disk", "RGB").read(image), pixels_of(image))
    assert f"{file}, which cannot be read: " in caplog.text
    assert problem in caplog.text
    assert file.read_bytes() == whole


def test_files_may_be_deleted_at_any_time(folder: Path, image: str) -> None:
    cache = ImageCache("disk", "RGB")
    cache.read(image)
    pixels = cache.read(image)
    (file,) = folder.glob("*/*")
    file.unlink()
    np.testing.assert_array_equal(pixels, pixels_of(image))
    np.testing.assert_array_equal(cache.read(image), pixels_of(image))


def test_a_full_disk_is_one_warning(
    folder: Path,
    image: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    full_disk: Callable[[int], AbstractContextManager[None]],
) -> None:
    other = write(tmp_path / "other.png", 3)
    cache = ImageCache("disk", "RGB")
    with full_disk(1000):
        for path in (image, other, image):
            np.testing.assert_array_equal(cache.read(path), pixels_of(path))
    assert caplog.text.count("Decoded images cannot be cached") == 1
    assert not [path for path in folder.glob("*/*") if path.is_file()]


def test_a_folder_that_cannot_be_used_is_one_warning(
    folder: Path, image: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("a file")
    cache = ImageCache("disk", "RGB")
    for path in (image, write(tmp_path / "other.png", 3), image):
        np.testing.assert_array_equal(cache.read(path), pixels_of(path))
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("Decoded images cannot be cached (")
    assert "cannot be written: Not a directory), so they are decoded again" in caplog.messages[0]


def test_damaged_files_that_cannot_be_replaced_are_not_reported_again_and_again(
    folder: Path,
    image: str,
    caplog: pytest.LogCaptureFixture,
    full_disk: Callable[[int], AbstractContextManager[None]],
) -> None:
    ImageCache("disk", "RGB").read(image)
    (file,) = folder.glob("*/*")
    file.write_bytes(file.read_bytes()[:-1])
    cache = ImageCache("disk", "RGB")
    with full_disk(1000):
        for _ in range(3):
            np.testing.assert_array_equal(cache.read(image), pixels_of(image))
    assert [message.split(" (")[0].split(" the ")[0] for message in caplog.messages] == [
        "Decoding an image again instead of using",
        "Decoded images cannot be cached",
    ]


def test_a_broken_image_is_the_same_error_as_without_a_cache(folder: Path, image: str) -> None:
    Path(image).write_bytes(Path(image).read_bytes()[:-20])
    cache = ImageCache("disk", "RGB")
    with pytest.raises(InputError, match=f"^{image}: truncated, or not an image"):
        cache.read(image)
    with pytest.raises(InputError, match=r"nowhere\.png: cannot be read: No such file"):
        cache.read("nowhere.png")
    assert not folder.exists()


def test_the_size_is_logged_before_anything_is_written(
    folder: Path, image: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ImageCache("disk", "RGB")
    caplog.set_level("INFO")
    official = [(f"{number}.png", 1024, 2048) for number in range(100)]
    cache.check_space([*official, (image, None, None)])
    # 100 x 1024 x 2048 x 3 bytes are 0.629 GB.
    assert "101 decoded images take 0.6 GB in " in caplog.text
    assert "of which 0.6 GB will be written" in caplog.text
    assert not folder.exists()
    # 2^20 x 2^24 x 3 bytes.
    with pytest.raises(
        InputError,
        match=r"^INPUT\.CACHE disk: 1 decoded images take 52776.6 GB, of which 52776.6 GB are .* "
        r"set CITYSCAPES_MASKRCNN_CACHE to another folder, or INPUT\.CACHE to none$",
    ):
        cache.check_space([("a.png", 2**20, 2**24)])


def test_shared_memory_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "_SHARED_MEMORY", tmp_path)
    cache = ImageCache("ram", "RGB")
    with pytest.raises(
        InputError,
        match=rf"^INPUT\.CACHE ram: 1 decoded images take 52776.6 GB, .* {tmp_path}/cityscapes_.* "
        r"GB are free; set INPUT\.CACHE to disk or none$",
    ):
        cache.check_space([("a.png", 2**20, 2**24)])


def test_what_is_there_needs_no_room(
    folder: Path, image: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ImageCache("disk", "RGB")
    cache.read(image)
    left = folder / "ab" / ".abc.pixels.12345678.tmp"
    left.parent.mkdir(exist_ok=True)
    left.touch()
    os.utime(left, (1, 1))
    caplog.set_level("INFO")
    cache.check_space([(image, 20, 30)])
    assert not caplog.text
    assert not left.exists()


USE_SHARED_MEMORY = """
import sys
from pathlib import Path
from cityscapes_maskrcnn.data import image_cache
image_cache._SHARED_MEMORY = Path(sys.argv[1])
cache = image_cache.ImageCache("ram", "RGB")
cache.read(sys.argv[2])
print("ready", flush=True)
sys.stdin.read()
"""


def test_shared_memory_is_freed_by_the_last_process(tmp_path: Path, image: str) -> None:
    shared = tmp_path / "shm"
    shared.mkdir()

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", USE_SHARED_MEMORY, str(shared), image],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "ready\n"
        return process

    def files() -> int:
        return len(list(shared.glob("*/images/*/*.pixels")))

    with start() as one, start() as two:
        one.communicate()
        assert files() == 1
        # It cannot remove them; the next one does.
        two.kill()
        two.communicate()
    assert files() == 1
    with start() as three:
        three.communicate()
    assert three.returncode == 0
    assert files() == 0


def test_shared_memory_of_somebody_else_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_cache, "_SHARED_MEMORY", tmp_path)
    (tmp_path / "elsewhere").mkdir()
    own = tmp_path / f"cityscapes_maskrcnn-{os.getuid()}"
    own.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=rf"^INPUT\.CACHE ram: {own} is not this user's"):
        ImageCache("ram", "RGB")
    monkeypatch.setattr(image_cache, "_SHARED_MEMORY", tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"^INPUT\.CACHE ram: .*: No such file or directory; set"):
        ImageCache("ram", "RGB")
