"""Upload a folder to the Hugging Face hub; needs huggingface_hub."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.text import message_of, printable


def check_repository(repository: str) -> None:
    """Verify that an upload is possible as far as this machine knows.

    Raises:
        InputError: huggingface_hub is not installed, or it is no ``OWNER/NAME``.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InputError("--upload: huggingface_hub is not installed; pip install huggingface_hub")
    if not re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", repository, re.ASCII):
        raise InputError(f"--upload {printable(repository, 200)}: it must be OWNER/NAME")


def upload_folder(folder: Path, repository: str, files: Sequence[str]) -> str:
    """Upload files of a folder to a model repository, which is made, private, when missing.

    Args:
        folder: of the files.
        repository: ``OWNER/NAME``.
        files: their names.

    Returns:
        The address of the repository.

    Raises:
        InputError: the hub refuses it or cannot be reached. The folder stays as it is.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        address = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=list(files),
            commit_message="Weights, config and model card",
        )
    except Exception as error:  # of many kinds: network, login, rights, the hub's own
        raise InputError(
            f"--upload {repository}: not uploaded: {message_of(error)}; the files are in {folder}: "
            f"log in by `hf auth login` and upload them by `hf upload {repository} {folder}`"
        ) from error
    return str(address)
