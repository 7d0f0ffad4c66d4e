"""Every config key that this project adds to Detectron2's."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.projects.point_rend import add_pointrend_config

# For the names that they add to Detectron2's registries.
from cityscapes_maskrcnn.modeling import (  # noqa: F401
    anchor_generator,
    backbone,
    convnext,
    fused_mask_head,
    patch_dct_head,
    roi_heads,
    rpn,
    semantic_head,
)


def add_cityscapes_maskrcnn_config(cfg: CfgNode) -> None:
    """Add the project's keys, with their defaults, to Detectron2's config.

    With the defaults, Detectron2's own configs behave as before, except for the rounding of
    ``MODEL.FOLD_FROZEN_NORM`` in this project's trainer. Afterwards,
    ``detectron2.modeling.build_model`` builds every config in ``configs/``.

    Args:
        cfg: the config to extend, in place.
    """
    # ---- More files ---------------------------------------------------------------------------
    # Yaml files, such as the best.yaml of a search or anchors.yaml. They are merged in this order,
    # after the config file and before the rest of the command line. Paths are relative to the
    # working directory. The saved OUTPUT_DIR/config.yaml contains everything that was merged and an
    # empty INCLUDE, so it loads anywhere.
    cfg.INCLUDE = ()

    # ---- Several processes --------------------------------------------------------------------
    # Seconds within which all processes of a training must have connected; also the seconds without
    # a heartbeat after which a process counts as lost (killed, or on a machine that cannot be
    # reached). The others then end with a line that names it.
    cfg.PROCESS_TIMEOUT = 120.0

    # ---- Tracking -----------------------------------------------------------------------------
    # Services that receive scalars, pictures and the config, besides metrics.json and TensorBoard's
    # files in OUTPUT_DIR (scalars, pictures, official precision-recall curves, hyperparameters):
    # "wandb" (Weights & Biases) and "mlflow"; `pip install wandb mlflow-skinny` installs them. A
    # resumed run continues as the same run there: its id is in OUTPUT_DIR/tracking.json. Their
    # environment variables apply, such as WANDB_MODE=offline (the run stays in OUTPUT_DIR/wandb
    # until `wandb sync`), WANDB_API_KEY and WANDB_ERROR_REPORTING=false; MLFLOW_TRACKING_URI (a
    # server, or a file: sqlite:////data/mlflow.db; default: ./mlflow.db). MLflow's telemetry is
    # off. If a service fails during training, a warning says so once, and training continues
    # without it.
    cfg.TRACKING = CfgNode()
    cfg.TRACKING.BACKENDS = ()
    # The project in W&B and the experiment in MLflow.
    cfg.TRACKING.PROJECT = "cityscapes_maskrcnn"
    # Name of the run there; "": the last two folders of OUTPUT_DIR.
    cfg.TRACKING.RUN_NAME = ""
    # Number of images per scored dataset whose ground truth and predictions are drawn at each
    # evaluation during training, always the same ones; each takes up to a megabyte of TensorBoard's
    # file. Detections with a score of at least TEST.ANALYSIS_CONFIDENCE are drawn. 0: none.
    cfg.TRACKING.NUM_PICTURES = 3

    # ---- Equal runs ---------------------------------------------------------------------------
    # True: two runs with the same config, weights, data and SEED (0 or more) on the same kind of
    # GPU with the same versions end with the same weights, bit for bit; otherwise the order of
    # sums on a GPU varies. A step then takes 1.8 times as long (docs/benchmarks.md). On CPUs, runs
    # are reproducible without it.
    cfg.DETERMINISTIC = False

    # ---- Length of training, in passes over DATASETS.TRAIN ------------------------------------
    # One epoch is ceil(images / SOLVER.IMS_PER_BATCH) iterations, counting the images that remain
    # after DATALOADER.FILTER_EMPTY_ANNOTATIONS. At the start, these keys are converted to
    # Detectron2's own, in iterations; the log and OUTPUT_DIR/config.yaml show both. If one of
    # Detectron2's is on the command line and its counterpart here is not, Detectron2's applies.
    # Epochs to train; sets SOLVER.MAX_ITER. 0: SOLVER.MAX_ITER applies.
    cfg.SOLVER.EPOCHS = 0
    # Epochs between two checkpoints; sets SOLVER.CHECKPOINT_PERIOD. 0: that key applies.
    cfg.SOLVER.CHECKPOINT_EPOCHS = 0
    # Epochs between two evaluations; sets TEST.EVAL_PERIOD. 0: that key applies.
    cfg.TEST.EVAL_EPOCHS = 0

    # ---- Optimizer and schedule ---------------------------------------------------------------
    # "SGD" (Detectron2's, with SOLVER.MOMENTUM), "Adam" or "AdamW" (betas 0.9 and 0.999). All use
    # SOLVER.BASE_LR, WEIGHT_DECAY, WEIGHT_DECAY_NORM, BIAS_LR_FACTOR and CLIP_GRADIENTS.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # SOLVER.LR_SCHEDULER_NAME also accepts "ReduceLROnPlateau": the learning rate is multiplied by
    # FACTOR when the validation loss has reached no new minimum in more than PATIENCE measurements
    # in a row. It needs TEST.VALIDATION_LOSS; warm-up keys have no effect on it.
    # THRESHOLD: the relative decrease from the lowest loss so far that counts as a new minimum, for
    # EARLY_STOPPING too. 0.0: any decrease counts.
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
    # The metric that chooses model_best.pth, as named in metrics.json: a loss
    # ("validation/loss_mask") is minimised, a score ("segm/AP50") is maximised. "": segm/AP if it
    # is measured, else the validation loss, else sem_seg/IoU.
    cfg.SOLVER.BEST_CHECKPOINT_METRIC = ""

    # ---- Less memory --------------------------------------------------------------------------
    # Number of micro-batches into which a batch is divided. They go through the model one after the
    # other, and their gradients are summed before a single optimizer step. SOLVER.IMS_PER_BATCH
    # stays the batch size of a step over all processes; it must be a multiple of
    # processes x ACCUMULATE. Iterations, schedule, epochs, seeds and --resume count optimizer
    # steps, which see the same images with any ACCUMULATE. Live BatchNorm normalises by the
    # micro-batch. tools/train_net.py --auto-batch finds the value for a GPU.
    cfg.SOLVER.ACCUMULATE = 1
    # True: the gradients are those of the whole batch, in which each sampled region, each mask and
    # each labelled pixel has the same weight, and all images are padded to the largest. The sampled
    # regions of a Mask R-CNN have to be counted first, which costs one more forward pass for all
    # micro-batches except the first. False: each micro-batch has the same weight, as each process
    # has in DistributedDataParallel.
    cfg.SOLVER.ACCUMULATE_EXACTLY = True
    # Trained parts of the model that keep only their inputs for the backward pass and recompute the
    # rest in it: any of "stem", "res2" to "res5" (block by block), "fpn", "rpn_head", "box_head"
    # and "mask_head". The gradients are the same; each part costs one more forward pass through it.
    # A float32 image of 1024x2048 takes 2.43 GB of activations when everything trains. "rpn_head"
    # saves 0.36 of it, "stem", "res2", "res3" and "fpn" 0.2 each, "res4" 0.16, "res5" 0.1, and the
    # others almost nothing; with all of them, 1.01 remain. (): none.
    cfg.MODEL.ACTIVATION_CHECKPOINTING = ()

    # ---- Averaged weights ---------------------------------------------------------------------
    # Decay of an exponential moving average of the weights, such as 0.999 (an average over about
    # the last 1,000 steps); 0.0: no average. Step t, from 0, uses
    # min(EMA_DECAY, (1 + t) / (10 + t)). The average covers all trained parameters and the
    # statistics of live BatchNorm, in float32. It is scored before the weights themselves
    # ("segm_EMA/AP" beside "segm/AP"; files in OUTPUT_DIR/inference_EMA). Every checkpoint contains
    # it, and at the end it is saved as model_final_ema.pth, which MODEL.WEIGHTS may name. The
    # validation loss, and everything that depends on it, is measured with the trained weights. With
    # SOLVER.BEST_CHECKPOINT_METRIC "segm_EMA/AP", model_best.pth contains averaged weights.
    cfg.SOLVER.EMA_DECAY = 0.0

    # The type in which SOLVER.AMP.ENABLED computes: "float16", as Detectron2 does, or "bfloat16",
    # which has the range of float32 and needs no loss scaling (on Ampere and later GPUs).
    cfg.SOLVER.AMP.PRECISION = "float16"
    # Keep images and weights with their channels last in memory, which tensor cores prefer. Results
    # are the same except for rounding. On CPUs, dilated convolutions become slower.
    cfg.MODEL.CHANNELS_LAST = False
    # Fold BatchNorm with fixed statistics (FrozenBN; in evaluation live BatchNorm too) into the
    # weights of the convolution before it, which saves a pass over every feature map. Checkpoints
    # contain the same tensors either way. Results are equal except for rounding (one part in a
    # million in float32); with False they are Detectron2's, bit for bit.
    cfg.MODEL.FOLD_FROZEN_NORM = True
    # Use torch.compile for backbone and FPN, RPN head, box head and mask head: "off", "auto" (on
    # GPUs whose compiler works; otherwise the log says why not) or "on" (on CPUs too; an error
    # where it does not work). Write the quotes in yaml, because a bare off is a boolean. Each batch
    # shape is compiled once, which takes up to minutes and is shown in the log; later runs load it
    # from ~/.cache/cityscapes_maskrcnn/compiled (or TORCHINDUCTOR_CACHE_DIR) within a second. The
    # number of regions stays dynamic. The shapes are those to which Detectron2 pads batches anyway,
    # 8 for the sizes in INPUT.MIN_SIZE_TRAIN; there is no further padding, so results differ only
    # by rounding. Off by default, because the first run compiles for minutes.
    cfg.MODEL.COMPILE = "off"

    # At the end of training, report how far every stage of the backbone (ResNet or ConvNeXt) moved
    # from the weights it started with: drift.csv and drift.md in OUTPUT_DIR, and drift.png unless
    # those weights were random.
    cfg.SOLVER.DRIFT_REPORT = False

    # ---- ConvNeXt: MODEL.BACKBONE.NAME "build_convnext_fpn_backbone" --------------------------
    # Its features are named res2 to res5, and MODEL.BACKBONE.FREEZE_AT counts its stages, as a
    # ResNet's. MODEL.WEIGHTS takes the ImageNet weights of torchvision and timm, of tiny, small and
    # base: "torchvision://convnext_tiny", "timm://convnext_tiny.in12k_ft_in1k".
    cfg.MODEL.CONVNEXT = CfgNode()
    # Blocks of each stage: [3, 3, 9, 3] is torchvision's tiny, [3, 3, 27, 3] its small and base.
    cfg.MODEL.CONVNEXT.DEPTHS = [3, 3, 9, 3]
    # Channels of the first stage, doubled in each further one: 96 in tiny and small, 128 in base.
    cfg.MODEL.CONVNEXT.CHANNELS = 96
    # Probability with which the last block is skipped for an image in training (stochastic depth);
    # it rises linearly from 0 in the first block. Frozen blocks are never skipped.
    cfg.MODEL.CONVNEXT.DROP_PATH = 0.1

    # ---- Pruned models ------------------------------------------------------------------------
    # Input and output channels of each layer, by name, which override those from the other keys.
    # tools/compress_model.py prune writes this into the config.yaml beside its checkpoint. All
    # BatchNorm is then folded into the convolution before it. Empty: not pruned.
    cfg.MODEL.PRUNED_WIDTHS = CfgNode(new_allowed=True)
    # Train the model to imitate another one (the teacher) on the same images: the features of the
    # pyramid and the class probabilities of the sampled regions. The losses are
    # loss_distill_features, the squared distance relative to the squared length, and
    # loss_distill_classes, a Kullback-Leibler divergence; WEIGHT, 0.0 or more, is the factor of
    # both. TEACHER is a checkpoint of the model of this config without PRUNED_WIDTHS;
    # tools/compress_model.py prune writes it. A step takes another forward pass, and memory for a
    # second model. Validation loss, checkpoints and predictions are not affected. "": none.
    cfg.MODEL.DISTILLATION = CfgNode()
    cfg.MODEL.DISTILLATION.TEACHER = ""
    cfg.MODEL.DISTILLATION.WEIGHT = 1.0

    # ---- Weights ------------------------------------------------------------------------------
    # Prefixes of parameters that may have another shape in MODEL.WEIGHTS, because they depend on
    # the number of classes; they are then initialised from scratch, and the log says so. Any other
    # difference in shape is an error, where Detectron2 only warns and continues with random values.
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
    # a class then start from its rows in the file (those of rider from person), and the log lists
    # which; a class that is not in the file starts from scratch. Checkpoints of this project and of
    # MMDetection name their classes themselves. (): for a file that does not, heads with another
    # number of classes start from scratch, and those with the same number are taken to have the
    # same classes, as in Detectron2.
    cfg.MODEL.WEIGHTS_CLASSES = ()
    # Names of pickle files, with the wildcards * and ?, that MODEL.WEIGHTS may name; all others are
    # refused. Detectron2's model zoo consists of pickle files. Only arrays are read; no code is
    # run.
    cfg.MODEL.WEIGHTS_ALLOW_PICKLE = ("detectron2://*", "https://dl.fbaipublicfiles.com/*")

    # ---- Own datasets -------------------------------------------------------------------------
    # Weather variants of Cityscapes, ACDC and other data in its layout: one node per dataset, named
    # as in DATASETS.TRAIN and DATASETS.TEST; datasets/README.md has examples. Every node has:
    #   IMAGE_DIR     folder that contains the city folders; absolute, or relative to the root of
    #                 the data.
    #   GT_DIR        the same for the annotations; without this key there are none.
    #   TASK          "instance" (the default) or "semantic".
    #   IMAGE_SUFFIX  the end of the image names; the rest of a name identifies the image. Default
    #                 "_leftImg8bit.png".
    #   GT_KIND       annotation files are named by the image's identity, "_", GT_KIND, and
    #                 "_polygons.json" and so on. Default "gtFine".
    cfg.DATASETS.OWN = CfgNode(new_allowed=True)

    # ---- Rare classes -------------------------------------------------------------------------
    # DATALOADER.SAMPLER_TRAIN also accepts Detectron2's "RepeatFactorTrainingSampler", with its
    # keys REPEAT_THRESHOLD t (which must be set) and REPEAT_SQRT: an image with a class that occurs
    # in a fraction f < t of all images is repeated sqrt(t / f) times, or t / f times. Fractional
    # repeats are rounded at random in each pass over the data. The order depends on SEED alone, as
    # with the default sampler, and resuming is exact. An epoch still has as many examples as there
    # are images, so a pass over the data takes more than one epoch.

    # ---- Input --------------------------------------------------------------------------------
    # False: INPUT.CROP crops first, and the crop is resized to MIN_SIZE_TRAIN, as in Detectron2.
    # True: the image is resized and flipped first; with INPUT.CROP.TYPE "absolute", all examples
    # then have the same size, SIZE in pixels of the network's input, at every scale.
    cfg.INPUT.CROP.AFTER_RESIZE = False
    # How images are resized for training and the validation loss: "exact", as in Detectron2, or
    # "fast", which takes a third of the time and differs by at most 2 of 255 grey levels. Scoring
    # is always exact.
    cfg.INPUT.RESIZE = "exact"
    # Decode every image only once, when it is first read, and keep its pixels (6.3 MB for an
    # official image) in: "disk", files in the cache folder (datasets/README.md), which later runs
    # use too; "ram", shared memory, until the last process that uses it ends (the next run removes
    # what a killed one leaves behind). With "disk", what fits into the machine's free memory is
    # cached there as well. "none": decode every time.
    cfg.INPUT.CACHE = "none"

    # ---- Large-scale jitter -------------------------------------------------------------------
    # True: instead of INPUT.MIN_SIZE_TRAIN, MAX_SIZE_TRAIN and CROP, every image is resized to fit
    # into SIZE times a random scale, then cropped or padded to SIZE. All examples then have one
    # shape, which MODEL.COMPILE compiles once. Padding is grey and has no semantic label; objects
    # that are cropped away are removed, and boxes are fitted to the visible part.
    cfg.INPUT.LSJ = CfgNode()
    cfg.INPUT.LSJ.ENABLED = False
    # The scale is uniformly distributed between them; at 1.0, an image with the aspect ratio of
    # SIZE fills it.
    cfg.INPUT.LSJ.MIN_SCALE = 0.1
    cfg.INPUT.LSJ.MAX_SCALE = 2.0
    # Height and width of every example, in pixels.
    cfg.INPUT.LSJ.SIZE = [1024, 2048]

    # ---- Copy-paste of instances --------------------------------------------------------------
    # Probability that objects of another training image are pasted into an image, at their own
    # positions, after both were augmented (Ghiasi et al., CVPR 2021). Hidden parts are removed from
    # the outlines and boxes of the objects behind. Each time, a second image has to be loaded. Only
    # for models that learn nothing but instances, with INPUT.MASK_FORMAT polygon; crowd groups of
    # the other image are not pasted. An image that draws itself stays as it is, so the share of
    # changed images is a little lower. 0.0: never.
    cfg.INPUT.COPY_PASTE = CfgNode()
    cfg.INPUT.COPY_PASTE.PROB = 0.0
    # The number of objects is random, from 1 to this number (at most all those of the other image).
    cfg.INPUT.COPY_PASTE.MAX_OBJECTS = 10
    # False: each image, and each of its objects, is equally likely. True: the probability of each
    # object in the training data is inversely proportional to the number of objects of its class.
    cfg.INPUT.COPY_PASTE.PREFER_RARE = False
    # Minimum number of pixels of a pasted object, and of the visible part of one that is partly
    # hidden: a smaller one becomes background. The official score counts objects of at least 100
    # pixels.
    cfg.INPUT.COPY_PASTE.MIN_AREA = 100
    # Standard deviation, in pixels, of the Gaussian that smooths the seam around a pasted object.
    # 0.0: no smoothing.
    cfg.INPUT.COPY_PASTE.BLEND = 0.0

    # ---- Colour jitter ------------------------------------------------------------------------
    # In training, each pixel is blended with black (BRIGHTNESS), with the mean of the image
    # (CONTRAST) and with its own grey value (SATURATION); for a value x, 0 to 1, the weight of the
    # original pixel is uniformly distributed from 1 - x to 1 + x. 0.0: no change; 0.4 is usual.
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
    # Dropout probability after the pyramid, in training.
    cfg.MODEL.SEM_SEG_HEAD.ASPP_DROPOUT = 0.5

    # ---- PointRend: MODEL.ROI_MASK_HEAD.NAME "PointRendMaskHead" -------------------------------
    # Its keys, MODEL.POINT_HEAD.* and some more of ROI_MASK_HEAD, are those of Detectron2's own
    # project, which describes them; configs/pointrend_rcnn_R_50_FPN.yaml is an example. It needs
    # INPUT.MASK_FORMAT "bitmask", ROI_MASK_HEAD.POOLER_TYPE "", and a POINT_HEAD.NUM_CLASSES that
    # equals ROI_HEADS.NUM_CLASSES.
    # INPUT.COLOR_AUG_SSD and INPUT.CROP.SINGLE_CATEGORY_MAX_AREA are refused: they belong to that
    # project's mapper for semantic segmentation.
    add_pointrend_config(cfg)

    # ---- PatchDCT: MODEL.ROI_MASK_HEAD.NAME "PatchDCTHead" -------------------------------------
    # Masks of 112x112 as a vector of 300 frequencies, refined in 14x14 patches of 8x8 pixels. It
    # also uses NUM_CONV, CONV_DIM, FC_DIM (outputs of the linear layers and channels of the
    # convolutions per patch), NORM, CLS_AGNOSTIC_MASK, POOLER_RESOLUTION and POOLER_SAMPLING_RATIO
    # of MODEL.ROI_MASK_HEAD; its POOLER_TYPE must be "". configs/patchdct_*.yaml are examples.
    # A patch whose probability of foreground, or of background, exceeds this is treated as entirely
    # that, even if "mixed" is more probable; 0 to 1. It affects only inference.
    cfg.MODEL.PATCH_DCT_HEAD = CfgNode()
    cfg.MODEL.PATCH_DCT_HEAD.SOLID_THRESH = 0.3

    # ---- Choosing and reporting -----------------------------------------------------------------
    # Datasets on which training evaluates instead of DATASETS.TEST: their scores, or their
    # validation loss, choose model_best.pth, which is scored on DATASETS.TEST once, at the end. The
    # two must not share images. (): DATASETS.TEST chooses model_best.pth, and cannot score it.
    cfg.DATASETS.VAL = ()

    # ---- Classes ------------------------------------------------------------------------------
    # Names of the instance classes to train on and to score, such as ("person", "car"), for
    # datasets in the Cityscapes layout. Objects of other classes are then background. The order is
    # always that of the dataset; MODEL.ROI_HEADS.NUM_CLASSES must be their number. (): all classes.
    cfg.DATASETS.CLASSES = ()

    # ---- What a model has seen ----------------------------------------------------------------
    # Every checkpoint records the names of the datasets, and a digest of each image, that it and
    # the weights it started from were trained or tuned on.
    # Datasets whose scores chose settings of this config, such as those of a search. DATASETS.TRAIN
    # is included automatically. So is DATASETS.VAL (without it, DATASETS.TEST) with early stopping
    # or ReduceLROnPlateau, and for model_best.pth. Values from the config file and from every
    # INCLUDE add up; a value on the command line replaces them all.
    cfg.DATASETS.TUNED_ON = ()
    # False: scoring a model on images that it has seen is an error, and so is training on images of
    # DATASETS.TEST. True: both are allowed, and the log and scores.json say so.
    cfg.TEST.ALLOW_SEEN_IMAGES = False

    # ---- Anchors: MODEL.ANCHOR_GENERATOR.NAME "KMeansAnchorGenerator" ------------------------
    # It uses SIZES and ASPECT_RATIOS as given. With SIZES [], both are fitted by k-means to the
    # boxes of DATASETS.TRAIN at the size of inference, one size for each level of RPN.IN_FEATURES.
    # If the resumed run, or the run that MODEL.WEIGHTS comes from, has fitted anchors, those are
    # kept. OUTPUT_DIR/config.yaml contains the result.
    # Number of ratios to fit, which is the number of anchors in every cell of a feature map. It
    # must be the number with which the weights were trained; otherwise loading them is an error.
    cfg.MODEL.ANCHOR_GENERATOR.NUM_RATIOS = 3

    # ---- Freezing -----------------------------------------------------------------------------
    # Freeze the FPN's own layers, BatchNorm statistics included ("gradient flow" off); True or
    # False. For the network below it, there is MODEL.BACKBONE.FREEZE_AT: 5 freezes all of it.
    cfg.MODEL.FPN.FREEZE = False

    # ---- Evaluation ---------------------------------------------------------------------------
    # Measure the training losses on DATASETS.TEST too, every TEST.EVAL_PERIOD iterations: scalars
    # "validation/total_loss", "validation/loss_mask", ... beside the training losses.
    cfg.TEST.VALIDATION_LOSS = False
    # Minimum score, 0 to 1, of the predictions in the error analysis, the tables and pictures in
    # OUTPUT_DIR/inference/analysis. The AP itself uses all predictions.
    cfg.TEST.ANALYSIS_CONFIDENCE = 0.5
    # Draw its pictures, which takes 2 to 3 seconds per dataset; the tables are always written.
    cfg.TEST.ANALYSIS_PICTURES = True
    # Keep masks as the mask head predicts them (28 x 28; PatchDCT 112 x 112, PointRend 224 x 224)
    # and paste them only while scoring or writing a submission, and only within their boxes: the
    # same pixels, many times faster. With False, and for models that do not support it (other meta
    # architectures), masks cover the full frame, as in Detectron2.
    cfg.TEST.UNPASTED_MASKS = True
    # How to treat overlapping detections of a class, with MODEL.ROI_HEADS.NAME "BatchedROIHeads".
    # METHOD "off": of those with an IoU above ROI_HEADS.NMS_THRESH_TEST, only the best is kept.
    # Soft-NMS lowers the scores of the others instead, and removes those that are no longer above
    # SCORE_THRESH_TEST: "linear" multiplies by 1 - IoU, for an IoU from NMS_THRESH_TEST on;
    # "gaussian" multiplies by exp(-IoU^2 / SIGMA), for any IoU. It works in inference and needs no
    # training; it is not available with TEST.AUG. docs/accuracy.md has its effect on AP, on
    # generated scenes only.
    cfg.MODEL.ROI_HEADS.SOFT_NMS = CfgNode()
    cfg.MODEL.ROI_HEADS.SOFT_NMS.METHOD = "off"
    cfg.MODEL.ROI_HEADS.SOFT_NMS.SIGMA = 0.5
    # These two apply to scoring, submissions and the Predictor. Up to BATCH_SIZE consecutive images
    # of the same size are predicted together; results keep their order and equal those of single
    # images except for rounding. PRECISION: "float32", "bfloat16" or, on GPUs, "float16"; for
    # training there is SOLVER.AMP, and the validation loss is always measured in float32.
    cfg.TEST.BATCH_SIZE = 1
    cfg.TEST.PRECISION = "float32"
    # Worker processes, per process of the model, that score while the model predicts. 0: none; the
    # model then waits while each prediction is scored.
    cfg.TEST.NUM_WORKERS = 1

    _add_search_config(cfg)


def _add_search_config(cfg: CfgNode) -> None:
    """Add what ``tools/tune.py`` reads: the search space, and how trials are run and judged."""
    cfg.SEARCH = CfgNode()
    # The metric to maximise, as named in metrics.json. "segm/AP" is the official AP.
    cfg.SEARCH.OBJECTIVE = "segm/AP"

    # ---- Search space: one node per parameter, named as the parameter in the study ------------
    # A yaml file may add nodes with any other name. Every node has:
    #   ENABLED  whether the parameter is searched. False: the config's own value is used.
    #   KEY      the config key that it sets. Empty for those below whose values
    #            search/space.py turns into config keys.
    #   TYPE     "float" or "int": a number from LOW to HIGH (both included); "categorical": one
    #            of CHOICES, which are numbers, strings or True and False.
    #   LOG      True: sampled on a logarithmic scale.
    #   FIRST    its value in the first trial. None: sampled.
    # All of these can be changed in yaml or on the command line, for instance
    # SEARCH.PARAMETERS.fg_iou_thresh.HIGH 0.6 SEARCH.PARAMETERS.base_lr.ENABLED True.
    cfg.SEARCH.PARAMETERS = CfgNode(new_allowed=True)
    space = cfg.SEARCH.PARAMETERS
    # The first values are the best of 42 trials on Cityscapes.
    # IoU from which a proposal is foreground for the box head. Between half of it and this value,
    # proposals are ignored; below, they are background: ROI_HEADS.IOU_THRESHOLDS [fg / 2, fg],
    # IOU_LABELS [0, -1, 1].
    space.fg_iou_thresh = _parameter("float", 0.3, 0.7, first=0.4154)
    # IoU from which an anchor is foreground for the RPN, and IoU below which it is background:
    # RPN.IOU_THRESHOLDS [negative, positive]; in between, it is ignored.
    space.rpn_positive_iou_thresh = _parameter("float", 0.6, 0.9, first=0.7889)
    space.rpn_negative_iou_thresh = _parameter("float", 0.1, 0.4, first=0.2198)
    # Whether the FPN's parameters are updated: FPN.FREEZE is its opposite.
    space.fpn_grad_flow = _parameter("categorical", choices=(True, False), first=True)
    # Off unless enabled: learning rate, weight decay, and whether anchors are fitted to the boxes
    # of DATASETS.TRAIN (False: those of the config).
    space.base_lr = _parameter("float", 1e-5, 1e-3, log=True, key="SOLVER.BASE_LR", enabled=False)
    space.weight_decay = _parameter(
        "float", 1e-6, 1e-2, log=True, key="SOLVER.WEIGHT_DECAY", enabled=False
    )
    space.kmeans_anchors = _parameter("categorical", choices=(True, False), enabled=False)

    # ---- Pruning: ending a trial early when its score after an evaluation is low ---------------
    # Successive halving: after MIN_EVALUATIONS evaluations, REDUCTION times as many, REDUCTION ^ 2
    # times as many and so on, only the best 1 / REDUCTION of all trials that got this far continue.
    # With the ten evaluations of stage_2_search.yaml, that is once, half way. Earlier pruning (1
    # and 4) saves three quarters of the training, and lost the best trial in recorded searches:
    # docs/benchmarks.md. A trial with at most MIN_EVALUATIONS evaluations is never pruned.
    cfg.SEARCH.PRUNER = CfgNode()
    cfg.SEARCH.PRUNER.MIN_EVALUATIONS = 5
    cfg.SEARCH.PRUNER.REDUCTION = 2

    # ---- Running trials -----------------------------------------------------------------------
    # The sampler's choices depend only on SEED and the number of the trial, not on the worker.
    # Random trials before the sampler learns from the results.
    cfg.SEARCH.RANDOM_TRIALS = 10
    # A worker stops when this many of its trials in a row have failed: the config is broken.
    cfg.SEARCH.MAX_FAILURES = 3
    # Minutes without a new log line after which a trial is ended as failed. 0: never.
    cfg.SEARCH.STALL_MINUTES = 60.0
    # Seconds between two heartbeats of a worker. After three intervals without one, the worker
    # counts as killed, and another one takes over its trial. It should be the same for all workers
    # of a study.
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
