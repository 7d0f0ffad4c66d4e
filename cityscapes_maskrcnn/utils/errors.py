"""The one exception that stands for bad input."""

from __future__ import annotations


class InputError(Exception):
    """Something the user gave cannot be used: a file, a folder, a flag, a config value.

    The message is one line that says which input, what is wrong with it and what to do. Tools print
    it without a traceback and exit with status 1, see
    :func:`cityscapes_maskrcnn.utils.tool.run_tool`; a traceback therefore always means a defect of
    this project.
    """
