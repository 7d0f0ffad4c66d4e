"""The official txt + PNG format: what is read, what is refused, what is written."""

from __future__ import annotations

import io
import os
import resource
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cityscapes_maskrcnn.evaluation.instance_ap import Prediction, match_image
from cityscapes_maskrcnn.evaluation.masks import RunMask, mask_from_bitmap
from cityscapes_maskrcnn.evaluation.result_files import (
    assign_text_files,
    choose_images,
    decode_mask,
    find_ground_truth,
    find_result_files,
    ground_truth_file,
    map_result_files,
    read_masks,
    read_result_lines,
)
from cityscapes_maskrcnn.evaluation.result_source import ResultSource
from cityscapes_maskrcnn.utils.errors import InputError

NAME = "ulm_000003_000019"
HEIGHT, WIDTH = 20, 30


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with one good result file and its mask: a car in columns 5 to 9, rows 2 to 3."""
    folder = tmp_path / "results"
    folder.mkdir()
    pixels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    pixels[2:4, 5:10] = 1
    Image.fromarray(pixels).save(folder / "car.png")
    (folder / f"{NAME}_pred.txt").write_text("car.png 26 0.75\n")
    return folder


def read_mask(file: Path, height: int, width: int) -> RunMask:
    return decode_mask(file, file.read_bytes(), height, width)


def read(results: Path, text: str = f"{NAME}_pred.txt", height: int = HEIGHT) -> list[Prediction]:
    source = ResultSource(results)
    lines = read_result_lines(source, text)
    return read_masks(source, text, lines, height=height, width=WIDTH)


def test_names() -> None:
    found = ground_truth_file("/gt/val", f"/images/val/ulm/{NAME}_leftImg8bit.png")
    assert found == Path(f"/gt/val/ulm/{NAME}_gtFine_instanceIds.png")
    foggy = f"/foggy/val/ulm/{NAME}_leftImg8bit_foggy_beta_0.02.png"
    found = ground_truth_file("/gt", foggy, "_leftImg8bit_foggy_beta_0.02.png")
    assert found == Path(f"/gt/ulm/{NAME}_gtFine_instanceIds.png")
    found = ground_truth_file("/gt", "/a/GOPR0475/GOPR_1_rgb_anon.png", "_rgb_anon.png", "gt")
    assert found == Path("/gt/GOPR0475/GOPR_1_gt_instanceIds.png")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # As the official script, Detectron2, MMDetection and this project name them.
        (["a_0_1.txt", "x/a_0_1_pred.txt", "a_0_1_leftImg8bit_pred.txt"], {"a_0_1": 3}),
        (["a_0_10_pred.txt", "a_0_10.txt"], {"a_0_10": 2}),
        (["a_0_100.txt", "b_a_0_1.txt", "a_0.txt", ".txt"], {}),
        # Names that begin with others.
        (["a_0_1_night_leftImg8bit_pred.txt"], {"a_0_1_night": 1}),
        (["new york 0.02_pred.txt", "new_york_0.02.txt"], {"new york 0.02": 2}),
    ],
)
def test_text_files_belong_to_the_longest_name(names: list[str], expected: dict[str, int]) -> None:
    images = ["a_0_1", "a_0_10", "a_0_1_night", "new york 0.02"]
    own, others = assign_text_files(names, images)
    assert list(own) == images
    assert {name: len(found) for name, found in own.items() if found} == expected
    assert len(others) == len(names) - sum(expected.values())


def test_images_whose_text_files_would_be_one() -> None:
    for names in (["a b", "a_b"], ["a", "a"]):
        with pytest.raises(InputError, match=f"images {names[0]} and {names[1]} have the same"):
            assign_text_files([], names)


def test_a_part_of_a_split_does_not_take_the_results_of_other_images(
    results: Path, gt_files: dict[str, Path]
) -> None:
    """A night image of the same name lies in the split, but is not to be scored."""
    (gt_file,) = gt_files.values()
    night = gt_file.with_name(f"{NAME}_night_gtFine_instanceIds.png")
    night.write_bytes(gt_file.read_bytes())
    (matches,) = map_result_files(match_image, results, gt_files, num_workers=1)
    (results / f"{NAME}_night_pred.txt").write_text("")
    (again,) = map_result_files(match_image, results, gt_files, num_workers=1)
    np.testing.assert_equal(vars(again), vars(matches))
    (results / f"{NAME}_pred.txt").unlink()
    with pytest.raises(InputError, match=rf"holds no result file {NAME}\*\.txt"):
        map_result_files(match_image, results, gt_files, num_workers=1)


def test_reads_a_prediction(results: Path) -> None:
    (prediction,) = read(results)
    assert (prediction.category, prediction.confidence, prediction.box) == (2, 0.75, None)
    assert (prediction.mask.box(), prediction.mask.area()) == ((5, 2, 10, 4), 10)
    with pytest.raises(InputError, match=r"car.png: the mask is 20 x 30 .*, its image 21 x 30"):
        read(results, height=HEIGHT + 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        # 7 road, 29 caravan (ignored in evaluation), -1 license plate: their masks are not read.
        ("no.png 7 0.5\nno.png 29 0.5\nno.png -1 0.5\n", []),
        # Of a mask named twice the last line counts.
        ("car.png 26 0.75\n./car.png 24 0.25\n", [(0, 0.25)]),
        ("car.png 26.0 1e-3", [(2, 0.001)]),
    ],
)
def test_lines_as_the_official_reader_reads_them(
    results: Path, text: str, expected: list[tuple[int, float]]
) -> None:
    (results / f"{NAME}_pred.txt").write_text(text)
    assert [(p.category, p.confidence) for p in read(results)] == expected


def test_palette_mask_counts_by_colour_like_the_official_conversion(results: Path) -> None:
    indices = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    indices[0, 0], indices[0, 1] = 1, 2
    image = Image.fromarray(indices).convert("P")
    image.putpalette([0, 0, 0, 0, 0, 0, 255, 255, 255])  # index 1 is black too
    image.save(results / "car.png")
    assert [prediction.mask.box() for prediction in read(results)] == [(1, 0, 2, 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("car.png 26 0.5\ncar.png 26\n", "line 2: expected"),
        ("car.png 26 0.5\n\n", "line 2: expected"),
        ("my car.png 26 0.5\n", "line 1: expected"),
        ("car.png 26 high\n", "line 1: label id and confidence must be numbers"),
        ("car.png 99 0.5\n", "line 1: unknown label id 99"),
        ("car.png nan 0.5\n", "line 1: unknown label id nan"),
        ("car.png 26 nan\n", "line 1: the confidence nan is not a finite number"),
        ("/tmp/car.png 26 0.5\n", "line 1: the mask's path /tmp/car.png must be relative"),
        ("../car.png 26 0.5\n", "line 1: the mask ../car.png is outside of the results"),
        ("../results2/car.png 26 0.5\n", "outside of the results"),
        ("a/../../car.png 26 0.5\n", "outside of the results"),
        ("gone.png 26 0.5\n", "_pred.txt names the mask .*gone.png: cannot be read: No such file"),
        (". 26 0.5\n", "results: cannot be read: Is a directory"),
    ],
)
def test_bad_lines(results: Path, text: str, message: str) -> None:
    (results / f"{NAME}_pred.txt").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read(results)
    assert f"{NAME}_pred.txt" in str(error.value)
    (results / f"{NAME}_pred.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=f"{NAME}_pred.txt: not UTF-8 text"):
        read(results)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "I;16"])
def test_masks_of_every_kind(tmp_path: Path, mode: str) -> None:
    mask = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.3
    mask[:4], mask[:, 20:] = False, False
    if mode == "I;16":
        image = Image.fromarray(mask.astype(np.uint16) * 200)
    else:
        image = Image.fromarray(np.uint8(mask) * 255).convert(mode)
    image.save(tmp_path / "mask.png")
    found = read_mask(tmp_path / "mask.png", HEIGHT, WIDTH)
    np.testing.assert_array_equal(found.frame(), mask)


def png(header: tuple[int, ...], pixels: bytes) -> bytes:
    """A PNG file with valid checksums and any header."""
    return png_of_stream(header, zlib.compress(pixels))


def png_of_stream(header: tuple[int, ...], stream: bytes) -> bytes:
    """The same of compressed pixels."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", *header)),
        (b"IDAT", stream),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def test_filters_and_interlacing(tmp_path: Path) -> None:
    """Rows that repeat the row before, to the last; a grey of 4 bits; interlaced pixels."""
    file = tmp_path / "mask.png"
    file.write_bytes(png((3, 3, 8, 0, 0, 0, 0), b"\0\0\0\0" + b"\0\0\7\0" + b"\2\0\0\0"))
    assert read_mask(file, 3, 3).frame().tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 0]]
    file.write_bytes(png((3, 1, 4, 0, 0, 0, 0), b"\0\x05\0"))
    assert read_mask(file, 1, 3).frame().tolist() == [[0, 1, 0]]
    # Adam7 has the pixels of a 2 x 2 image in the order (0, 0), (0, 1) and the row below.
    file.write_bytes(png((2, 2, 8, 0, 0, 0, 1), b"\0\0" + b"\0\x09" + b"\0\0\x09"))
    assert read_mask(file, 2, 2).frame().tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize("side", [65535, 2**31 - 1])
@pytest.mark.parametrize("colour", [0, 2], ids=["grey", "RGB"])
def test_a_forged_size_allocates_nothing(tmp_path: Path, colour: int, side: int) -> None:
    file = tmp_path / "forged.png"
    file.write_bytes(png((side, side, 8, colour, 0, 0, 0), bytes(100)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"forged\.png"):
        read_mask(file, 8, 8)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def test_damaged_pixels_are_noticed(tmp_path: Path) -> None:
    pixels = np.uint8(np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.3) * 255
    file = tmp_path / "mask.png"
    Image.fromarray(pixels).save(file)
    data = file.read_bytes()
    pixels_end = len(data) - 12  # IEND
    for position in range(0, pixels_end, 3):
        file.write_bytes(data[:position])
        with pytest.raises(InputError, match="cannot read"):
            read_mask(file, HEIGHT, WIDTH)
    for position in range(data.index(b"IDAT"), pixels_end, 3):
        damaged = bytearray(data)
        damaged[position] ^= 4
        file.write_bytes(damaged)
        with pytest.raises(InputError, match="cannot read"):
            read_mask(file, HEIGHT, WIDTH)


def test_result_file_may_lie_anywhere_in_the_folder(results: Path) -> None:
    (results / "deep" / "er").mkdir(parents=True)
    moved = (results / f"{NAME}_pred.txt").rename(results / "deep" / "er" / f"{NAME}.txt")
    moved.write_text("../../car.png 26 0.5\n")
    assert find_result_files(ResultSource(results), [NAME]) == [f"deep/er/{NAME}.txt"]
    assert len(read(results, f"deep/er/{NAME}.txt")) == 1


def test_result_file_missing_or_doubled(results: Path) -> None:
    with pytest.raises(InputError, match=r"holds no result file ulm_000004_000019\*.txt"):
        find_result_files(ResultSource(results), [NAME, "ulm_000004_000019"])
    (results / "a").mkdir()
    (results / "a" / f"{NAME}.txt").write_text("")
    with pytest.raises(InputError, match=f"{NAME} has more than one result file"):
        find_result_files(ResultSource(results), [NAME])
    with pytest.raises(InputError, match="does not exist"):
        find_result_files(ResultSource(results / "gone"), [NAME])


def test_what_is_written_reads_back(tmp_path: Path, write_results: Callable[..., Path]) -> None:
    random = np.random.default_rng(0)
    predictions = [
        Prediction(mask_from_bitmap(random.random((HEIGHT, WIDTH)) < 0.5), 0, 0.1),
        Prediction(mask_from_bitmap(np.eye(HEIGHT, WIDTH)), 7, float(np.float32(0.3))),
        Prediction(mask_from_bitmap(np.zeros((HEIGHT, WIDTH))), 2, 1e-9),
    ]
    text_file = write_results(tmp_path, NAME, predictions)
    assert text_file == tmp_path / f"{NAME}_pred.txt"
    assert text_file.read_text().splitlines() == [
        f"{NAME}_0_person.png 24 0.1",
        f"{NAME}_1_bicycle.png 33 0.30000001192092896",
        f"{NAME}_2_car.png 26 1e-09",
    ]
    read_back = read(tmp_path, text_file.name)
    for before, after in zip(predictions, read_back, strict=True):
        assert (before.category, before.confidence) == (after.category, after.confidence)
        np.testing.assert_array_equal(before.mask.frame(), after.mask.frame())
    with Image.open(tmp_path / f"{NAME}_1_bicycle.png") as image:
        assert np.unique(image).tolist() == [0, 255]
    assert write_results(tmp_path, "a b 0.02", []).read_bytes() == b""


def test_workers_give_the_same_matches(results: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gt" / "ulm"
    folder.mkdir(parents=True)
    for index in range(24):
        ids = np.full((HEIGHT, WIDTH), 7, dtype=np.uint16)
        ids[2:4, 5 : 6 + index] = 26000
        ids[10:, :20] = 24000  # large enough to be scored
        Image.fromarray(ids).save(folder / f"ulm_1000{index:02}_000019_gtFine_instanceIds.png")
        (results / f"ulm_1000{index:02}_000019.txt").write_text("car.png 26 0.75\n")
    # Columns 5 to 9 against 5 to 5 + index: both start at 5.
    expected = [[min(5, index + 1) / max(5, index + 1)] for index in range(24)]
    for num_workers in (1, 2):
        matches = map_result_files(
            match_image, results, find_ground_truth(tmp_path / "gt"), num_workers
        )
        assert [image.overlaps.tolist() for image in matches] == expected


def test_broken_ground_truth_names_its_file(results: Path, tmp_path: Path) -> None:
    (tmp_path / "gt" / "ulm").mkdir(parents=True)
    file = tmp_path / "gt" / "ulm" / f"{NAME}_gtFine_instanceIds.png"
    Image.fromarray(np.full((HEIGHT, WIDTH), 34000, dtype=np.uint16)).save(file)
    with pytest.raises(InputError, match=f"{NAME}_gtFine_instanceIds.png: .* instance id 34000"):
        map_result_files(match_image, results, find_ground_truth(tmp_path / "gt"))
    with pytest.raises(InputError, match="gone does not exist"):
        map_result_files(match_image, results, find_ground_truth(tmp_path / "gone"))
    with pytest.raises(InputError, match="give a split's folder"):
        map_result_files(match_image, results, find_ground_truth(results))


@pytest.fixture
def gt_files(tmp_path: Path) -> dict[str, Path]:
    """A car of 200 pixels in the one image."""
    (tmp_path / "gt" / "ulm").mkdir(parents=True)
    ids = np.full((HEIGHT, WIDTH), 7, dtype=np.uint16)
    ids[0:10, 0:20] = 26000
    Image.fromarray(ids).save(tmp_path / "gt" / "ulm" / f"{NAME}_gtFine_instanceIds.png")
    return find_ground_truth(tmp_path / "gt")


def test_labels_that_are_not_scored(
    results: Path, gt_files: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """51 cars with their train id, as a converter that knows no label ids writes them."""
    text = results / f"{NAME}_pred.txt"
    lines = [f"{index}.png 13 0.9\n" for index in range(51)]
    text.write_text("".join(lines))
    expected = (
        "51 of 51 predictions have labels that are not scored: 13; regular label ids are expected,"
        " car is 26"
    )
    with pytest.raises(InputError) as error:
        map_result_files(match_image, results, gt_files)
    assert str(error.value) == expected

    text.write_text("".join([*lines, "a.png 0 0.9\n", "car.png 26 0.9\n"]))
    map_result_files(match_image, results, gt_files)
    assert caplog.messages == [
        "52 of 53 predictions have labels that are not scored: 13, 0; regular label ids"
        " are expected, car is 26"
    ]
    # Nothing found is a result.
    caplog.clear()
    text.write_text("")
    assert [
        image.num_ground_truth[2] for image in map_result_files(match_image, results, gt_files)
    ] == [1]
    assert not caplog.messages


def test_nothing_to_score(results: Path, gt_files: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="no object of person, rider with 100 pixels or more"):
        map_result_files(match_image, results, gt_files, categories=[0, 1])
    ids = np.full((HEIGHT, WIDTH), 26, dtype=np.uint16)  # a group
    ids[0:9, 0:11] = 26001  # 99 pixels
    Image.fromarray(ids).save(gt_files[NAME])
    with pytest.raises(InputError, match="nothing can be scored: the ground truth of 1 images"):
        map_result_files(match_image, results, gt_files)


def test_zip_archive_scores_as_its_folder(
    results: Path, gt_files: dict[str, Path], tmp_path: Path
) -> None:
    archive = tmp_path / "results.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in results.iterdir():
            file.write(path, f"some_folder/{path.name}")
    (matches,) = map_result_files(match_image, archive, gt_files)
    # 10 pixels of the car's 200.
    assert matches.overlaps.tolist() == [0.05]
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("../evil.png", b"")
    with pytest.raises(InputError, match=r"unsafe path in the archive \.\./evil\.png"):
        map_result_files(match_image, archive, gt_files)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "results.zip: does not exist; give a folder or a zip archive"),
        (b"", "results.zip: no zip archive, or a damaged one"),
        (b"PK\x05\x06" + bytes(10), "results.zip: no zip archive, or a damaged one"),
    ],
)
def test_archives_that_are_none(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "results.zip"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        ResultSource(path)


def test_an_archive_of_too_many_files_is_not_listed(tmp_path: Path) -> None:
    path = tmp_path / "results.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"")
    data = path.read_bytes()
    start, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    entry = data[start:end]
    # 1 entry, it says, in a directory of 700,000.
    tail = data[end : end + 12] + struct.pack("<II", len(entry) * 700_000, start) + bytes(2)
    path.write_bytes(data[:start] + entry * 700_000 + tail)
    begin = time.process_time()
    with pytest.raises(InputError, match=f"^{path}: an archive of 700000 files; at most 200000 ar"):
        ResultSource(path)
    assert time.process_time() - begin < 1


def test_scans_of_a_jpeg_are_counted(results: Path) -> None:
    encoded = io.BytesIO()
    Image.new("L", (WIDTH, HEIGHT)).save(encoded, "JPEG", progressive=True)
    data = encoded.getvalue()
    last = data[data.rfind(b"\xff\xda") : -2]
    (results / "car.png").write_bytes(data)
    assert len(read(results)) == 1
    (results / "car.png").write_bytes(data[:-2] + last * 101)
    with pytest.raises(InputError, match=r"car\.png: a JPEG with too many scans or segments; save"):
        read(results)


def test_pipes_and_devices_are_not_read(results: Path) -> None:
    (results / "car.png").unlink()
    (results / "car.png").symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"car\.png: not a file, but a pipe or device"):
        read(results)
    (results / f"{NAME}_pred.txt").unlink()
    os.mkfifo(results / f"{NAME}_pred.txt")
    with pytest.raises(InputError, match=r"_pred\.txt: not a file, but a pipe or device"):
        read(results)
    with pytest.raises(InputError, match="neither a folder nor a file"):
        ResultSource(results / f"{NAME}_pred.txt")


def test_a_mask_whose_pixels_do_not_have_their_checksum(results: Path) -> None:
    """In sound chunks: Pillow, and so the official script, refuses it."""
    file = results / "car.png"
    stream = bytearray(zlib.compress(bytes(HEIGHT * (1 + WIDTH))))
    file.write_bytes(png_of_stream((WIDTH, HEIGHT, 8, 0, 0, 0, 0), bytes(stream)))
    assert read_mask(file, HEIGHT, WIDTH).area() == 0
    stream[-1] ^= 1
    file.write_bytes(png_of_stream((WIDTH, HEIGHT, 8, 0, 0, 0, 0), bytes(stream)))
    with pytest.raises(OSError, match="broken data stream"):
        Image.open(file).load()
    with pytest.raises(InputError, match=r"cannot read .*car.png as an image"):
        read_mask(file, HEIGHT, WIDTH)


def test_no_program_is_started_for_a_mask(results: Path) -> None:
    """Pillow would hand this to Ghostscript, which executes it."""
    text = (
        f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 {WIDTH} {HEIGHT}\n%%EndComments\nshowpage\n"
    )
    (results / "car.png").write_text(text)
    with pytest.raises(InputError, match=r"car\.png as an image: unknown format; expected a PNG"):
        read(results)


@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_formats_that_may_cost_minutes_or_gigabytes_are_no_masks(results: Path, kind: str) -> None:
    Image.new("L", (WIDTH, HEIGHT)).save(results / "car.png", kind)
    with pytest.raises(InputError, match=r"car\.png as an image: unknown format; expected a PNG"):
        read(results)


def test_images_of_a_list(gt_files: dict[str, Path]) -> None:
    assert choose_images(gt_files, [NAME]) == gt_files
    with pytest.raises(InputError, match=r"1 of 2 images .* such as ulm_000003_00001$"):
        choose_images(gt_files, [NAME, "ulm_000003_00001"])


@pytest.mark.parametrize(
    ("kind", "content", "fault"),
    [
        # A compression method that does not exist: a profile matters to Pillow, a text does not.
        (b"iCCP", b"profile\0\x49", "Unknown compression method 73 in iCCP chunk"),
        (b"tEXt", b"Software\0mine", ""),
        (b"zTXt", b"Comment\0\x10", "Unknown compression method 16 in zTXt chunk"),
    ],
)
def test_what_pillow_refuses_is_refused(
    tmp_path: Path, kind: bytes, content: bytes, fault: str
) -> None:
    encoded = io.BytesIO()
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(encoded, "PNG")
    pixels, end = encoded.getvalue()[:-12], encoded.getvalue()[-12:]
    chunk = struct.pack(">I", len(content)) + kind + content
    data = pixels + chunk + struct.pack(">I", zlib.crc32(kind + content)) + end
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
        refused = ""
    except SyntaxError as error:
        refused = str(error)
    assert refused == fault
    if fault:
        with pytest.raises(InputError, match=fault):
            decode_mask(tmp_path / "m.png", data, 8, 8)
    else:
        mask = decode_mask(tmp_path / "m.png", data, 8, 8)
        assert (mask.ends - mask.starts).sum() == 8
