"""Every config key that this project adds to Detectron2's."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_cityscapes_maskrcnn_config(cfg: CfgNode) -> None:
    """Add the project's keys, with their defaults, to Detectron2's config.

    With all defaults Detectron2's own configs behave as they always did.

    Args:
        cfg: the config to extend, in place.
    """
    # ---- Length of training, in passes over DATASETS.TRAIN ------------------------------------
    # One epoch is ceil(images / SOLVER.IMS_PER_BATCH) iterations, counting the images that are
    # left after DATALOADER.FILTER_EMPTY_ANNOTATIONS. At start-up these keys are turned into
    # Detectron2's own, measured in iterations; the log and OUTPUT_DIR/config.yaml show both.
    # Epochs to train; sets SOLVER.MAX_ITER. 0: SOLVER.MAX_ITER says how long.
    cfg.SOLVER.EPOCHS = 0
    # Epochs between two checkpoints; sets SOLVER.CHECKPOINT_PERIOD. 0: leave that key alone.
    cfg.SOLVER.CHECKPOINT_EPOCHS = 0
    # Epochs between two evaluations; sets TEST.EVAL_PERIOD. 0: leave that key alone.
    cfg.TEST.EVAL_EPOCHS = 0

    # ---- Optimizer and schedule ---------------------------------------------------------------
    # "SGD" (Detectron2's, with SOLVER.MOMENTUM), "Adam" or "AdamW" (betas 0.9 and 0.999). All use
    # SOLVER.BASE_LR, WEIGHT_DECAY, WEIGHT_DECAY_NORM, BIAS_LR_FACTOR and CLIP_GRADIENTS.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # SOLVER.LR_SCHEDULER_NAME knows one more name, "ReduceLROnPlateau": the learning rate is
    # multiplied by FACTOR when the validation loss found no new minimum in more than PATIENCE
    # measurements in a row. It needs TEST.VALIDATION_LOSS; warm-up keys have no effect on it.
    cfg.SOLVER.PLATEAU = CfgNode()
    cfg.SOLVER.PLATEAU.FACTOR = 0.1
    cfg.SOLVER.PLATEAU.PATIENCE = 3
    # End training after PATIENCE measurements of the validation loss in a row without a new
    # minimum. It needs TEST.VALIDATION_LOSS.
    cfg.SOLVER.EARLY_STOPPING = CfgNode()
    cfg.SOLVER.EARLY_STOPPING.ENABLED = False
    cfg.SOLVER.EARLY_STOPPING.PATIENCE = 5

    # What SOLVER.AMP.ENABLED computes in: "float16", as Detectron2, or "bfloat16", which has the
    # range of float32 and needs no scaling of the loss (on Ampere and later GPUs).
    cfg.SOLVER.AMP.PRECISION = "float16"
    # Keep images and weights with their channels last in memory, which tensor cores prefer. The
    # numbers stay the same but for rounding. On CPUs dilated convolutions become slower by it.
    cfg.MODEL.CHANNELS_LAST = False

    # At the end of training, report how far every stage of the ResNet-50 moved from the weights it
    # started with: drift.csv, drift.md and drift.png in OUTPUT_DIR.
    cfg.SOLVER.DRIFT_REPORT = False

    # ---- Weights ------------------------------------------------------------------------------
    # Parameters, by prefix, that MODEL.WEIGHTS may hold in another shape, because they depend on
    # the number of classes; they start anew, and the log says so. Any other difference in shape
    # is an error: Detectron2 only warns and goes on with random values.
    cfg.MODEL.WEIGHTS_MAY_DIFFER = (
        "roi_heads.box_predictor.",
        "roi_heads.mask_head.predictor.",
        "sem_seg_head.predictor.",
    )
    # Names of pickle files, with the wildcards * and ?, that MODEL.WEIGHTS may be; all others are
    # refused. Detectron2's model zoo is made of them. Arrays alone are read: no code runs.
    cfg.MODEL.WEIGHTS_ALLOW_PICKLE = ("detectron2://*", "https://dl.fbaipublicfiles.com/*")

    # ---- Input --------------------------------------------------------------------------------
    # False: as Detectron2, INPUT.CROP cuts first, and what is cut is resized to MIN_SIZE_TRAIN.
    # True: the image is resized and flipped first; with INPUT.CROP.TYPE "absolute" all examples
    # then have the same size, SIZE in pixels of the network's input, at every scale.
    cfg.INPUT.CROP.AFTER_RESIZE = False

    # ---- Semantic segmentation: MODEL.SEM_SEG_HEAD.NAME "TorchvisionDeepLabV3Head" ------------
    # It also uses IN_FEATURES (one), NUM_CLASSES, CONVS_DIM (channels of every branch), NORM,
    # IGNORE_VALUE and LOSS_WEIGHT of MODEL.SEM_SEG_HEAD.
    # Dilations of the three 3x3 branches of its spatial pyramid pooling, in cells of the feature
    # map, each of which is 8 x 8 pixels.
    cfg.MODEL.SEM_SEG_HEAD.ASPP_DILATIONS = [12, 24, 36]
    # Probability with which a channel value is dropped after the pyramid, in training.
    cfg.MODEL.SEM_SEG_HEAD.ASPP_DROPOUT = 0.5

    # ---- Evaluation ---------------------------------------------------------------------------
    # Measure the training losses on DATASETS.TEST too, every TEST.EVAL_PERIOD iterations: scalars
    # "validation/total_loss", "validation/loss_mask", ... beside the training losses.
    cfg.TEST.VALIDATION_LOSS = False
    # Lowest score, 0 to 1, of the predictions whose errors are sorted into the tables and pictures
    # of OUTPUT_DIR/inference/analysis. The scores themselves count all predictions.
    cfg.TEST.ANALYSIS_CONFIDENCE = 0.5
