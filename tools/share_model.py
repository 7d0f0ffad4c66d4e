#!/usr/bin/env python
"""Prepare a checkpoint for sharing: a folder with .safetensors weights, config and model card."""

from __future__ import annotations

import sys
from pathlib import Path

from cityscapes_maskrcnn.utils.startup import start_tool

start_tool()  # before the slow imports

from cityscapes_maskrcnn.deploy.hub_upload import check_repository, upload_folder
from cityscapes_maskrcnn.deploy.model_card import (
    CARD_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    read_model,
    read_scores,
    write_model,
)
from cityscapes_maskrcnn.utils.tool import folder, run_tool, tool_parser

EXAMPLES = """
Only the weights are copied, with their types unchanged; the training state and the paths of this
machine are not. The model card, README.md, states what the checkpoint records. Read it before you
publish it.

examples:
  score a checkpoint, and share it with its scores:
    tools/train_net.py --config-file output/stage_3/config.yaml --eval-only \\
        MODEL.WEIGHTS output/stage_3/model_final.pth OUTPUT_DIR output/scored
    tools/share_model.py --checkpoint output/stage_3/model_final.pth \\
        --scores output/scored/scores.json --output shared
  upload it to the Hugging Face hub as well, where a new repository is private at first:
    pip install huggingface_hub
    hf auth login
    tools/share_model.py ... --output shared --upload OWNER/NAME
"""


def main(argv: list[str] | None = None) -> None:
    """Read, write, and upload if asked to."""
    parser = tool_parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="FILE", help="a .pth file from train_net.py")
    add("--scores", metavar="FILE", help="its scores.json, from train_net.py --eval-only")
    add(
        "--output",
        required=True,
        type=folder("--output"),
        metavar="DIR",
        help="folder to write to; created if missing",
    )
    add("--upload", metavar="OWNER/NAME", help="also upload to this Hugging Face repository")
    args = parser.parse_args(argv)
    if args.upload is not None:
        check_repository(args.upload)
    checkpoint = Path(args.checkpoint)
    model = read_model(checkpoint)
    scores = None
    if args.scores is not None:
        scores = read_scores(Path(args.scores), checkpoint, model.source_sha256)
    write_model(args.output, model, scores)
    files = (WEIGHTS_FILE, CONFIG_FILE, CARD_FILE)
    print(f"{', '.join(files)} are in {args.output}")
    if scores is None:
        print("The card has no scores. To add them, name the model's scores.json with --scores.")
    if args.upload is not None:
        print(f"Uploaded to {upload_folder(args.output, args.upload, files)}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
