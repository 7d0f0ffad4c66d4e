"""Report the contents of registered datasets: a summary, tables and charts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

from cityscapes_maskrcnn.data.dataset_statistics import (
    DatasetStatistics,
    classes_to_csv,
    measure_dataset,
    objects_to_csv,
    overview,
    to_markdown,
)
from cityscapes_maskrcnn.data.registration import check_dataset_names, is_generated_dataset
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import write_text
from cityscapes_maskrcnn.visualization.dataset_charts import MAX_DATASETS, plot_dataset
from cityscapes_maskrcnn.visualization.image_files import make_folder
from cityscapes_maskrcnn.visualization.style import About, name_images


def write_dataset_report(names: Sequence[str], folder: Path) -> tuple[str, list[Path]]:
    """Measure datasets, and write ``report.md``, ``classes.csv``, ``objects.csv`` and pictures.

    Args:
        names: registered datasets of instances, each once.
        folder: created when missing.

    Returns:
        The overview as a Markdown table, and the files.

    Raises:
        InputError: a dataset is unknown, has no instances or no images, there are too many or they
            have different classes, or a file cannot be read or written.
    """
    check_dataset_names(names)
    if len(set(names)) < len(names) or len(names) > MAX_DATASETS:
        raise InputError(f"--dataset {' '.join(names)}: give one to {MAX_DATASETS}, each once")
    classes = [MetadataCatalog.get(name).get("thing_classes", []) for name in names]
    if any(each != classes[0] for each in classes):
        raise InputError(f"--dataset {' '.join(names)}: they have different classes")
    output = make_folder(folder)
    datasets = {name: _measure(name) for name in names}
    generated = [name for name in names if is_generated_dataset(name)]
    # Of real and generated data together the names say which is which, as the report does.
    is_mixed = 0 < len(generated) < len(names)
    marked = {name: f"{name} (generated scenes)" for name in generated if is_mixed}
    drawn = {marked.get(name, name): stats for name, stats in datasets.items()}
    dataset, num_images = name_images((name, stats.num_images) for name, stats in drawn.items())
    about = About(
        dataset=dataset,
        num_images=num_images,
        generated=bool(generated) and not is_mixed,
        protocol="annotated objects without groups",
    )
    pictures = plot_dataset(
        drawn, MetadataCatalog.get(names[0]).thing_colors, about=about, folder=output
    )
    texts = {
        "report.md": to_markdown(datasets, generated, [picture.name for picture in pictures]),
        "classes.csv": classes_to_csv(datasets),
        "objects.csv": objects_to_csv(datasets),
    }
    for name, text in texts.items():
        write_text(output / name, text)
    return overview(datasets), [*(output / name for name in texts), *pictures]


def _measure(name: str) -> DatasetStatistics:
    # Of others, such as COCO's, boxes have another form, and polygons overlap each other.
    if MetadataCatalog.get(name).get("evaluator_type") != "cityscapes_instance":
        raise InputError(
            f"{name} has no instances in the Cityscapes layout; name a dataset that has some, such "
            "as cityscapes_instance_train, or one of DATASETS.OWN"
        )
    images = DatasetCatalog.get(name)
    if not any("annotations" in image for image in images):
        raise InputError(f"{name} has no annotated instances, so there is nothing to count")
    progress = tqdm(images, desc=f"Measuring {name}", unit="image")
    return measure_dataset(progress, MetadataCatalog.get(name).thing_classes)
