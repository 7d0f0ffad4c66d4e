"""Every config key that this project adds to Detectron2's."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.projects.point_rend import add_pointrend_config

# For the names that they add to Detectron2's registries.
from cityscapes_maskrcnn.modeling import (  # noqa: F401
    anchor_generator,
    backbone,
    convnext,
    roi_heads,
    rpn,
    semantic_head,
)


def add_cityscapes_maskrcnn_config(cfg: CfgNode) -> None:
    """Add the project's keys, with their defaults, to Detectron2's config.

    With all defaults Detectron2's own configs behave as they always did, but for the rounding of
    ``MODEL.FOLD_FROZEN_NORM`` in this project's trainer. Every config in ``configs/`` then builds
    with ``detectron2.modeling.build_model``.

    Args:
        cfg: the config to extend, in place.
    """
    # ---- More files ---------------------------------------------------------------------------
    # Yaml files, merged in this order after the config file and before the rest of the command
    # line: best.yaml of a search, anchors.yaml. Paths are relative to the working directory. The
    # saved OUTPUT_DIR/config.yaml has everything merged and an empty INCLUDE: it loads anywhere.
    cfg.INCLUDE = ()

    # ---- Several processes --------------------------------------------------------------------
    # Seconds in which all processes of a training must have come together, and without a sign of
    # life after which one counts as lost: killed, or on a machine that is out of reach. The others
    # then end with a line that names it.
    cfg.PROCESS_TIMEOUT = 120.0

    # ---- Tracking -----------------------------------------------------------------------------
    # OUTPUT_DIR always has metrics.json and TensorBoard's files: scalars, pictures, official
    # precision-recall curves, hyperparameters. These get scalars, pictures and the config too:
    # "wandb" (Weights & Biases) and "mlflow", which `pip install wandb mlflow-skinny` installs. A
    # run that is resumed goes on there as the same run: OUTPUT_DIR/tracking.json has its id. Their
    # environment variables hold, such as WANDB_MODE=offline (the run stays in OUTPUT_DIR/wandb
    # until `wandb sync`), WANDB_API_KEY and WANDB_ERROR_REPORTING=false; MLFLOW_TRACKING_URI (a
    # server, or a file: sqlite:////data/mlflow.db; default: ./mlflow.db). MLflow's telemetry is
    # off. A service that fails in training is warned of, once, and left.
    cfg.TRACKING = CfgNode()
    cfg.TRACKING.BACKENDS = ()
    # The project at W&B and the experiment at MLflow.
    cfg.TRACKING.PROJECT = "cityscapes_maskrcnn"
    # Name of the run there; "": the last two folders of OUTPUT_DIR.
    cfg.TRACKING.RUN_NAME = ""
    # Images of every dataset that is scored in training whose ground truth and prediction are drawn
    # at each evaluation, always the same ones; each takes up to a megabyte of TensorBoard's file.
    # Detections are drawn from a score of TEST.ANALYSIS_CONFIDENCE on. 0: none.
    cfg.TRACKING.NUM_PICTURES = 3

    # ---- Equal runs ---------------------------------------------------------------------------
    # True: two runs with the same config, weights, data and SEED (0 or more) on the same kind of
    # GPU with the same versions end bit-equal; without it sums on a GPU come in any order. A step
    # then takes 1.8 times as long (docs/benchmarks.md). CPUs do not need it: equal runs on them
    # are equal.
    cfg.DETERMINISTIC = False

    # ---- Length of training, in passes over DATASETS.TRAIN ------------------------------------
    # One epoch is ceil(images / SOLVER.IMS_PER_BATCH) iterations, counting the images that are
    # left after DATALOADER.FILTER_EMPTY_ANNOTATIONS. At start-up these keys are turned into
    # Detectron2's own, measured in iterations; the log and OUTPUT_DIR/config.yaml show both. If
    # one of Detectron2's is on the command line and its key here is not, that one counts.
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
    # THRESHOLD: part of the lowest loss by which the next one must be below it to be a new minimum,
    # for EARLY_STOPPING too. 0.0: anything lower is.
    cfg.SOLVER.PLATEAU = CfgNode()
    cfg.SOLVER.PLATEAU.FACTOR = 0.1
    cfg.SOLVER.PLATEAU.PATIENCE = 3
    cfg.SOLVER.PLATEAU.THRESHOLD = 0.0
    # End training after PATIENCE measurements of the validation loss in a row without a new
    # minimum; model_final.pth then has the weights of model_best.pth. It needs
    # TEST.VALIDATION_LOSS.
    cfg.SOLVER.EARLY_STOPPING = CfgNode()
    cfg.SOLVER.EARLY_STOPPING.ENABLED = False
    cfg.SOLVER.EARLY_STOPPING.PATIENCE = 5
    # Which metric chooses model_best.pth, as named in metrics.json: a loss ("validation/loss_mask")
    # is minimised, a score ("segm/AP50") maximised. "": segm/AP if it is measured, else the
    # validation loss, else sem_seg/IoU.
    cfg.SOLVER.BEST_CHECKPOINT_METRIC = ""

    # ---- Less memory --------------------------------------------------------------------------
    # Micro-batches that a batch goes through the model in, one after the other; their gradients are
    # summed before the one step of the optimizer. SOLVER.IMS_PER_BATCH stays the batch of a step,
    # of all processes together; it must be a multiple of processes x ACCUMULATE. Iterations,
    # schedule, epochs, seeds and --resume count steps of the optimizer, which see the same images
    # with any ACCUMULATE. Live BatchNorm normalises by the micro-batch.
    # tools/train_net.py --auto-batch finds the value for a GPU.
    cfg.SOLVER.ACCUMULATE = 1
    # True: the gradients are those of the whole batch, in which each sampled region, each mask and
    # each labelled pixel counts alike, and all images are padded to the largest. A Mask R-CNN's
    # sampled regions have to be counted first: all micro-batches but the first take one more
    # forward pass. False: each micro-batch counts alike, as each process does in
    # DistributedDataParallel.
    cfg.SOLVER.ACCUMULATE_EXACTLY = True
    # Parts of the model that keep their inputs alone for the backward pass and compute the rest
    # anew in it, if they train: of "stem", "res2" to "res5" (each block by itself), "fpn",
    # "rpn_head", "box_head" and "mask_head". The gradients are the same; each part costs one more
    # forward pass through it. Of the 2.43 GB that a float32 image of 1024x2048 keeps when all
    # trains, "rpn_head" saves 0.36, "stem", "res2", "res3" and "fpn" 0.2 each, "res4" 0.16, "res5"
    # 0.1, the others almost nothing; all together leave 1.01. (): none.
    cfg.MODEL.ACTIVATION_CHECKPOINTING = ()

    # ---- Averaged weights ---------------------------------------------------------------------
    # Part of an exponential moving average of the weights that a step of the optimizer keeps, such
    # as 0.999 (it then looks back over about 1,000 steps); 0.0: no average. Step t, from 0, keeps
    # min(EMA_DECAY, (1 + t) / (10 + t)). The average is of all trained parameters and of live
    # BatchNorm's statistics, in float32. It is scored after the weights themselves ("segm_EMA/AP"
    # beside "segm/AP"; files in OUTPUT_DIR/inference_EMA), stands in every checkpoint, and at the
    # end in model_final_ema.pth, which MODEL.WEIGHTS may name. The validation loss, and what
    # follows it, is that of the trained weights. SOLVER.BEST_CHECKPOINT_METRIC "segm_EMA/AP" has
    # model_best.pth hold averaged weights.
    cfg.SOLVER.EMA_DECAY = 0.0

    # What SOLVER.AMP.ENABLED computes in: "float16", as Detectron2, or "bfloat16", which has the
    # range of float32 and needs no scaling of the loss (on Ampere and later GPUs).
    cfg.SOLVER.AMP.PRECISION = "float16"
    # Keep images and weights with their channels last in memory, which tensor cores prefer. The
    # numbers stay the same but for rounding. On CPUs dilated convolutions become slower by it.
    cfg.MODEL.CHANNELS_LAST = False
    # Multiply BatchNorm that stands still (FrozenBN; in evaluation live BatchNorm too) into the
    # weights of the convolution before it, instead of a pass over every feature map. Checkpoints
    # hold the same tensors with and without it. Results are equal but for rounding (in float32 a
    # part in a million); False computes bit for bit what Detectron2 does.
    cfg.MODEL.FOLD_FROZEN_NORM = True
    # torch.compile of backbone and FPN, RPN head, box head and mask head: "off", "auto" (on GPUs
    # whose compiler works; the log says why not elsewhere) or "on" (CPUs too; an error where it
    # does not work). In yaml write the quotes: a bare off is a boolean. Each shape of a batch is
    # compiled once, in up to minutes, which the log shows; the next run finds it in
    # ~/.cache/cityscapes_maskrcnn/compiled (or TORCHINDUCTOR_CACHE_DIR), in a second. The number of
    # regions is left open. Shapes are those that Detectron2 pads batches to anyway, 8 for the sizes
    # in INPUT.MIN_SIZE_TRAIN: nothing more is padded, so results differ by rounding alone.
    # Off by default: it has been verified on CPUs only.
    cfg.MODEL.COMPILE = "off"

    # At the end of training, report how far every stage of the backbone (ResNet or ConvNeXt) moved
    # from the weights it started with: drift.csv, drift.md and, unless those were random,
    # drift.png in OUTPUT_DIR.
    cfg.SOLVER.DRIFT_REPORT = False

    # ---- ConvNeXt: MODEL.BACKBONE.NAME "build_convnext_fpn_backbone" --------------------------
    # Its features are named res2 to res5, and MODEL.BACKBONE.FREEZE_AT counts its stages, as a
    # ResNet's. MODEL.WEIGHTS takes torchvision's ImageNet weights: "torchvision://convnext_tiny".
    cfg.MODEL.CONVNEXT = CfgNode()
    # Blocks of each stage: [3, 3, 9, 3] is torchvision's tiny, [3, 3, 27, 3] its small and base.
    cfg.MODEL.CONVNEXT.DEPTHS = [3, 3, 9, 3]
    # Channels of the first stage, doubled by each further one: tiny and small 96, base 128.
    cfg.MODEL.CONVNEXT.CHANNELS = 96
    # Probability with which the last block is left out for an image in training; it rises from 0 in
    # the first. Frozen blocks are never left out.
    cfg.MODEL.CONVNEXT.DROP_PATH = 0.1

    # ---- Pruned models ------------------------------------------------------------------------
    # What tools/compress_model.py prune writes into the config.yaml beside its checkpoint: for each
    # layer, by name, its numbers of input and output channels, in place of those that the other
    # keys give it. All BatchNorm is then part of the convolution before it. Empty: not pruned.
    cfg.MODEL.PRUNED_WIDTHS = CfgNode(new_allowed=True)
    # Training has the model imitate another one on the same images: the pyramid's features and the
    # class probabilities of the sampled regions. The losses are loss_distill_features, the squared
    # distance as a share of the squared length, and loss_distill_classes, a Kullback-Leibler
    # divergence; WEIGHT, 0.0 or more, is the factor of both. TEACHER is a checkpoint of the model
    # of this config, without PRUNED_WIDTHS; tools/compress_model.py prune writes it. A step takes
    # another forward pass, and memory for a second model. Validation loss, checkpoints and
    # predictions do not know of it. "": none.
    cfg.MODEL.DISTILLATION = CfgNode()
    cfg.MODEL.DISTILLATION.TEACHER = ""
    cfg.MODEL.DISTILLATION.WEIGHT = 1.0

    # ---- Weights ------------------------------------------------------------------------------
    # Parameters, by prefix, that MODEL.WEIGHTS may hold in another shape, because they depend on
    # the number of classes; they start anew, and the log says so. Any other difference in shape
    # is an error: Detectron2 only warns and goes on with random values.
    cfg.MODEL.WEIGHTS_MAY_DIFFER = (
        "roi_heads.box_predictor.",
        "roi_heads.mask_head.predictor.",
        "roi_heads.mask_head.coarse_head.prediction.",
        "roi_heads.mask_head.point_head.",
        "roi_heads.mask_head.patch_kind.",
        "roi_heads.mask_head.patch_vector.",
        "sem_seg_head.predictor.",
    )
    # Names of the classes of the heads in MODEL.WEIGHTS, in the order of their rows, or ("coco",):
    # COCO's 80, as Detectron2, torchvision and MMDetection order them. Scores, boxes and masks of
    # a class then start from its rows in the file, a rider's from a person's, and the log lists
    # which; a class that the file lacks starts anew. Checkpoints of this project and of MMDetection
    # name their classes themselves. (): of a file that does not, heads of another number of classes
    # start anew, and those of the same number are taken to have the same classes, as in Detectron2.
    cfg.MODEL.WEIGHTS_CLASSES = ()
    # Names of pickle files, with the wildcards * and ?, that MODEL.WEIGHTS may be; all others are
    # refused. Detectron2's model zoo is made of them. Arrays alone are read: no code runs.
    cfg.MODEL.WEIGHTS_ALLOW_PICKLE = ("detectron2://*", "https://dl.fbaipublicfiles.com/*")

    # ---- Datasets of one's own ----------------------------------------------------------------
    # Weather variants of Cityscapes, ACDC and other data in its layout: a node a dataset, named as
    # in DATASETS.TRAIN and DATASETS.TEST; datasets/README.md has examples. Every node has:
    #   IMAGE_DIR     folder of the city folders, below the root of the data or absolute.
    #   GT_DIR        the same of the annotations; without this key there are none.
    #   TASK          "instance" (the default) or "semantic".
    #   IMAGE_SUFFIX  what the names of the images end in; the rest of a name is the image's
    #                 identity. Default "_leftImg8bit.png".
    #   GT_KIND       the names of the annotations are the identity, "_", GT_KIND, and
    #                 "_polygons.json" and so on. Default "gtFine".
    cfg.DATASETS.OWN = CfgNode(new_allowed=True)

    # ---- Rare classes -------------------------------------------------------------------------
    # DATALOADER.SAMPLER_TRAIN knows Detectron2's "RepeatFactorTrainingSampler" too, with its keys
    # REPEAT_THRESHOLD t (to be set) and REPEAT_SQRT: an image with a class that is in a share
    # f < t of all images comes sqrt(t / f) times as often, or t / f times. What is left of a whole
    # number is drawn for each pass over the data. The order follows from SEED, as without it, and
    # resuming is exact. An epoch stays as many examples as there are images: a pass takes longer.

    # ---- Input --------------------------------------------------------------------------------
    # False: as Detectron2, INPUT.CROP cuts first, and what is cut is resized to MIN_SIZE_TRAIN.
    # True: the image is resized and flipped first; with INPUT.CROP.TYPE "absolute" all examples
    # then have the same size, SIZE in pixels of the network's input, at every scale.
    cfg.INPUT.CROP.AFTER_RESIZE = False
    # How images are resized for training and the validation loss: "exact", as Detectron2, or
    # "fast", a third of the time, within 2 of 255 grey levels of it. Scoring is always exact.
    cfg.INPUT.RESIZE = "exact"
    # Decode every image once, when it is first read, and then take its pixels (6.3 MB for an
    # official image) from: "disk", files in the cache folder (datasets/README.md), which stay for
    # later runs; "ram", shared memory, until the last process that uses it ends (what a killed one
    # leaves the next one removes). What fits into the machine's free memory is in it with "disk"
    # too. "none": decode every time.
    cfg.INPUT.CACHE = "none"

    # ---- Large-scale jitter -------------------------------------------------------------------
    # True: instead of INPUT.MIN_SIZE_TRAIN, MAX_SIZE_TRAIN and CROP, every image is resized to fit
    # into SIZE times a random scale, and cut or padded to SIZE. All examples then have one shape,
    # which MODEL.COMPILE compiles once. Padding is grey and has no semantic label; objects of which
    # nothing is left are removed, boxes are those of what is left.
    cfg.INPUT.LSJ = CfgNode()
    cfg.INPUT.LSJ.ENABLED = False
    # The scale is drawn evenly between them; 1.0 has an image of the shape of SIZE fill it.
    cfg.INPUT.LSJ.MIN_SCALE = 0.1
    cfg.INPUT.LSJ.MAX_SCALE = 2.0
    # Height and width of every example, in pixels.
    cfg.INPUT.LSJ.SIZE = [1024, 2048]

    # ---- Copy-paste of instances --------------------------------------------------------------
    # Probability with which a training image gets objects of another one pasted into it, where they
    # are in theirs, after both were augmented (Ghiasi et al., CVPR 2021). What they hide is taken
    # out of the outlines and boxes of the objects behind. It costs the loading of a second image
    # each time. For models of masks alone; the crowded groups of the other image stay there. 0.0:
    # never.
    cfg.INPUT.COPY_PASTE = CfgNode()
    cfg.INPUT.COPY_PASTE.PROB = 0.0
    # The number of objects is drawn from 1 to this, or as many as the other image has.
    cfg.INPUT.COPY_PASTE.MAX_OBJECTS = 10
    # False: each image, and each of its objects, has the same chance. True: each object of the
    # training data has a chance inverse to how many there are of its class.
    cfg.INPUT.COPY_PASTE.PREFER_RARE = False
    # Fewest pixels of an object to be pasted, and of what is left of one that is partly hidden:
    # with less it becomes background. The official score counts objects from 100 pixels on.
    cfg.INPUT.COPY_PASTE.MIN_AREA = 100
    # Standard deviation, in pixels, of the Gaussian by which the seam around a pasted object is
    # smoothed. 0.0: not at all.
    cfg.INPUT.COPY_PASTE.BLEND = 0.0

    # ---- Colour jitter ------------------------------------------------------------------------
    # In training, each pixel is mixed with black (BRIGHTNESS), the mean of the image (CONTRAST) and
    # its own grey (SATURATION); for a value x, 0 to 1, the factor of what it was is drawn evenly
    # from 1 - x to 1 + x. 0.0: that one is left alone; 0.4 is usual.
    cfg.INPUT.COLOR_JITTER = CfgNode()
    cfg.INPUT.COLOR_JITTER.BRIGHTNESS = 0.0
    cfg.INPUT.COLOR_JITTER.CONTRAST = 0.0
    cfg.INPUT.COLOR_JITTER.SATURATION = 0.0

    # ---- Semantic segmentation: MODEL.SEM_SEG_HEAD.NAME "TorchvisionDeepLabV3Head" ------------
    # It also uses IN_FEATURES (one), NUM_CLASSES, CONVS_DIM (channels of every branch), NORM,
    # IGNORE_VALUE and LOSS_WEIGHT of MODEL.SEM_SEG_HEAD. "CoarseSemSegFPNHead", the other head of
    # stage 0, has the keys of Detectron2's SemSegFPNHead.
    # Dilations of the three 3x3 branches of its spatial pyramid pooling, in cells of the feature
    # map, each of which is 8 x 8 pixels.
    cfg.MODEL.SEM_SEG_HEAD.ASPP_DILATIONS = [12, 24, 36]
    # Probability with which a channel value is dropped after the pyramid, in training.
    cfg.MODEL.SEM_SEG_HEAD.ASPP_DROPOUT = 0.5

    # ---- PointRend: MODEL.ROI_MASK_HEAD.NAME "PointRendMaskHead" -------------------------------
    # Its keys are those of Detectron2's own project, MODEL.POINT_HEAD.* and more of ROI_MASK_HEAD,
    # and described there; configs/pointrend_rcnn_R_50_FPN.yaml is an example. Three go together:
    # INPUT.MASK_FORMAT "bitmask", ROI_MASK_HEAD.POOLER_TYPE "", and POINT_HEAD.NUM_CLASSES, which
    # must be ROI_HEADS.NUM_CLASSES.
    # Two, INPUT.COLOR_AUG_SSD and INPUT.CROP.SINGLE_CATEGORY_MAX_AREA, are refused: they belong to
    # a mapper of that project, for semantic segmentation.
    add_pointrend_config(cfg)

    # ---- PatchDCT: MODEL.ROI_MASK_HEAD.NAME "PatchDCTHead" -------------------------------------
    # Masks of 112x112 as a vector of 300 frequencies, refined in 14x14 patches of 8x8 pixels. It
    # also uses NUM_CONV, CONV_DIM, FC_DIM (outputs of the linear layers and channels of the
    # convolutions per patch), NORM, CLS_AGNOSTIC_MASK, POOLER_RESOLUTION and POOLER_SAMPLING_RATIO
    # of MODEL.ROI_MASK_HEAD; its POOLER_TYPE must be "". configs/patchdct_*.yaml are examples.
    # A patch whose probability of foreground, or of background, is above this is all of it, even if
    # it is more probably mixed; 0 to 1. Inference alone depends on it.
    cfg.MODEL.PATCH_DCT_HEAD = CfgNode()
    cfg.MODEL.PATCH_DCT_HEAD.SOLID_THRESH = 0.3

    # ---- Choosing and reporting -----------------------------------------------------------------
    # Datasets that a training measures on in the place of DATASETS.TEST: their scores, or their
    # validation loss, choose model_best.pth, which is scored on DATASETS.TEST once, at the end. The
    # images of the two must differ. (): DATASETS.TEST chooses model_best.pth, and cannot score it.
    cfg.DATASETS.VAL = ()

    # ---- Classes ------------------------------------------------------------------------------
    # Names of instance classes to train on and to score, such as ("person", "car"), of datasets in
    # the layout of Cityscapes. Objects of other classes are background then. The order is always
    # the dataset's; MODEL.ROI_HEADS.NUM_CLASSES must be how many they are. (): all classes.
    cfg.DATASETS.CLASSES = ()

    # ---- What a model has seen ----------------------------------------------------------------
    # Every checkpoint carries the names of the datasets, and a digest of each image, that it and
    # the weights it started from were trained or tuned on.
    # Datasets whose scores chose settings of this config, such as those of a search. DATASETS.TRAIN
    # counts by itself, and so does DATASETS.VAL, or without it DATASETS.TEST, with early stopping
    # or ReduceLROnPlateau, and for model_best.pth. Those of the config file and of every INCLUDE
    # add up; on the command line the key replaces them all.
    cfg.DATASETS.TUNED_ON = ()
    # False: scoring a model on images that it has seen is an error; so is training on images of
    # DATASETS.TEST. True: it is done, and the log and scores.json say so.
    cfg.TEST.ALLOW_SEEN_IMAGES = False

    # ---- Anchors: MODEL.ANCHOR_GENERATOR.NAME "KMeansAnchorGenerator" ------------------------
    # It uses SIZES and ASPECT_RATIOS as they are. With SIZES [] both are fitted by k-means to the
    # boxes of DATASETS.TRAIN at the size of inference, one size for each level of RPN.IN_FEATURES,
    # unless the run that is resumed, or the one that MODEL.WEIGHTS comes from, has fitted anchors:
    # then these are kept. What was chosen stands in OUTPUT_DIR/config.yaml.
    # How many ratios to fit, which is the number of anchors in every cell of a feature map. With
    # another number than the weights were trained with, loading them is an error.
    cfg.MODEL.ANCHOR_GENERATOR.NUM_RATIOS = 3

    # ---- Freezing -----------------------------------------------------------------------------
    # Keep the FPN's own layers as they are, BatchNorm statistics included ("gradient flow" off);
    # True or False. The network below has MODEL.BACKBONE.FREEZE_AT: 5 freezes all of it.
    cfg.MODEL.FPN.FREEZE = False

    # ---- Evaluation ---------------------------------------------------------------------------
    # Measure the training losses on DATASETS.TEST too, every TEST.EVAL_PERIOD iterations: scalars
    # "validation/total_loss", "validation/loss_mask", ... beside the training losses.
    cfg.TEST.VALIDATION_LOSS = False
    # Lowest score, 0 to 1, of the predictions whose errors are sorted into the tables and pictures
    # of OUTPUT_DIR/inference/analysis. The scores themselves count all predictions.
    cfg.TEST.ANALYSIS_CONFIDENCE = 0.5
    # Leave masks as the mask head makes them (28 x 28; PatchDCT 112 x 112, PointRend 224 x 224) and
    # paste them while scoring or writing a submission, into their boxes only: the same pixels, many
    # times faster. Models that cannot (other meta architectures) and False: full-frame masks, as
    # Detectron2.
    cfg.TEST.UNPASTED_MASKS = True
    # Overlapping detections of a class, with MODEL.ROI_HEADS.NAME "BatchedROIHeads". METHOD "off":
    # of those with an IoU above ROI_HEADS.NMS_THRESH_TEST the best one stays. Soft-NMS lowers the
    # scores of the others instead, and removes those that are no longer above SCORE_THRESH_TEST:
    # "linear" by 1 - IoU, from NMS_THRESH_TEST on; "gaussian" by exp(-IoU^2 / SIGMA), at any IoU.
    # docs/accuracy.md has its effect on AP, on generated scenes alone. It is applied in inference
    # and needs no training; not with TEST.AUG.
    cfg.MODEL.ROI_HEADS.SOFT_NMS = CfgNode()
    cfg.MODEL.ROI_HEADS.SOFT_NMS.METHOD = "off"
    cfg.MODEL.ROI_HEADS.SOFT_NMS.SIGMA = 0.5
    # What scoring, submissions and the Predictor share. Images of one size, next to each other, are
    # predicted together, at most BATCH_SIZE of them; results keep their order and are those of one
    # at a time but for rounding. PRECISION: "float32", "bfloat16" or, on GPUs, "float16"; training
    # has SOLVER.AMP, and the validation loss is always measured in float32.
    cfg.TEST.BATCH_SIZE = 1
    cfg.TEST.PRECISION = "float32"
    # Processes beside every process of the model that score while it predicts. 0: none, the model
    # waits for the score of its last prediction.
    cfg.TEST.NUM_WORKERS = 1

    _add_search_config(cfg)


def _add_search_config(cfg: CfgNode) -> None:
    """Add what ``tools/tune.py`` reads: the search space, and how trials are run and judged."""
    cfg.SEARCH = CfgNode()
    # The score of a trial, as named in metrics.json; the larger the better. "segm/AP": official.
    cfg.SEARCH.OBJECTIVE = "segm/AP"

    # ---- Search space: a node for each parameter; its name is the parameter's in the study ----
    # A yaml file may add nodes with any other name. Every node has:
    #   ENABLED  whether the parameter is searched. False: the config's own value is used.
    #   KEY      the config key that it sets. Empty for those below whose values
    #            search/space.py turns into config keys.
    #   TYPE     "float" or "int": a number from LOW to HIGH (both included); "categorical": one
    #            of CHOICES, which are numbers, strings or True and False.
    #   LOG      True: drawn evenly on a logarithmic scale.
    #   FIRST    its value in the first trial. None: drawn.
    # Anything may be changed by yaml or on the command line, for instance
    # SEARCH.PARAMETERS.fg_iou_thresh.HIGH 0.6 SEARCH.PARAMETERS.base_lr.ENABLED True.
    cfg.SEARCH.PARAMETERS = CfgNode(new_allowed=True)
    space = cfg.SEARCH.PARAMETERS
    # The first values are the best of 42 trials on Cityscapes.
    # IoU from which a proposal is foreground for the box head. From half of it on, candidates are
    # ignored; below, background: ROI_HEADS.IOU_THRESHOLDS [fg / 2, fg], IOU_LABELS [0, -1, 1].
    space.fg_iou_thresh = _parameter("float", 0.3, 0.7, first=0.4154)
    # IoU from which an anchor is foreground, and below which it is background, for the RPN:
    # RPN.IOU_THRESHOLDS [negative, positive]; between them it is ignored.
    space.rpn_positive_iou_thresh = _parameter("float", 0.6, 0.9, first=0.7889)
    space.rpn_negative_iou_thresh = _parameter("float", 0.1, 0.4, first=0.2198)
    # Whether the FPN's parameters are updated: FPN.FREEZE is its opposite.
    space.fpn_grad_flow = _parameter("categorical", choices=(True, False), first=True)
    # More that can be switched on: learning rate and weight decay (without a unit), and whether
    # anchors are fitted to the boxes of DATASETS.TRAIN (False: those of the config).
    space.base_lr = _parameter("float", 1e-5, 1e-3, log=True, key="SOLVER.BASE_LR", enabled=False)
    space.weight_decay = _parameter(
        "float", 1e-6, 1e-2, log=True, key="SOLVER.WEIGHT_DECAY", enabled=False
    )
    space.kmeans_anchors = _parameter("categorical", choices=(True, False), enabled=False)

    # ---- Pruning: ending a trial early when its score after an evaluation is low ---------------
    # Successive halving: of all trials that came so far, the best 1 / REDUCTION go on; asked after
    # MIN_EVALUATIONS evaluations, REDUCTION times as many, REDUCTION ^ 2 times, ... Of the ten of
    # stage_2_search.yaml that is once, half way. Sooner (1 and 4) saves three quarters of the
    # training, and in recorded searches lost the best trial: docs/benchmarks.md. A trial of no more
    # than MIN_EVALUATIONS evaluations is never pruned.
    cfg.SEARCH.PRUNER = CfgNode()
    cfg.SEARCH.PRUNER.MIN_EVALUATIONS = 5
    cfg.SEARCH.PRUNER.REDUCTION = 2

    # ---- Running trials -----------------------------------------------------------------------
    # Draws of the sampler follow from SEED and the number of the trial, whoever runs it.
    # Trials drawn at random before the sampler learns from the results.
    cfg.SEARCH.RANDOM_TRIALS = 10
    # A worker gives up when this many of its trials in a row failed: the config is broken.
    cfg.SEARCH.MAX_FAILURES = 3
    # Minutes without a line of log after which a trial is ended as failed. 0: never.
    cfg.SEARCH.STALL_MINUTES = 60.0
    # Seconds between two signs of life of a worker. After three of them without one it counts as
    # killed, and another worker takes over its trial. Workers of one study should agree.
    cfg.SEARCH.HEARTBEAT_SECONDS = 30


def _parameter(
    kind: str,
    low: float = 0.0,
    high: float = 0.0,
    *,
    log: bool = False,
    choices: tuple[object, ...] = (),
    first: object = None,
    key: str = "",
    enabled: bool = True,
) -> CfgNode:
    """Make the node of one searched parameter; the comments above explain its keys."""
    return CfgNode(
        {
            "ENABLED": enabled,
            "KEY": key,
            "TYPE": kind,
            "LOW": low,
            "HIGH": high,
            "LOG": log,
            "CHOICES": choices,
            "FIRST": first,
        }
    )
