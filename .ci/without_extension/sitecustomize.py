"""Leave Detectron2's C++ extension, which needs a compiler and is not used, out of its wheel.

Python imports a module of this name at its start, so with this folder on PYTHONPATH Detectron2's
setup.py gets this ``setup``.
"""

import setuptools

original_setup = setuptools.setup


def setup(**arguments):
    """Call setuptools' function without extension modules."""
    return original_setup(**{**arguments, "ext_modules": []})


setuptools.setup = setup
