"""How every tool starts and ends."""

from __future__ import annotations

import argparse
import errno
import os
import re
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.text import printable


def run_tool(main: Callable[[], int | None]) -> int:
    """Call a tool's ``main`` and turn its outcome into an exit status.

    Args:
        main: parses ``sys.argv`` and does the work; returns an exit status, None meaning 0.

    Returns:
        What ``main`` returned; 1 after an :class:`InputError`, whose message goes to stderr as one
        line, and after a file system said no (no permission, a file where a folder should be); 130
        after Ctrl-C; 141, as a command ended by SIGPIPE, where nobody reads what it prints any more
        (``describe_checkpoint.py FILE | head``). Every other exception is a defect and passes
        through.
    """
    try:
        status = main() or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Processes and connections of the tool raise it too.
        if not _nobody_reads_stdout():
            raise
        # Python flushes once more at its exit, which would fail with a traceback of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except (InputError, OSError) as error:
        problem = one_line(error)
        if problem is None:
            raise
        print(f"error: {problem}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        return 130


def _nobody_reads_stdout() -> bool:
    """Whether the reader of the pipe that is the standard output has gone."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def tool_parser(description: str | None, examples: str) -> argparse.ArgumentParser:
    """Make the parser of a tool without flags.

    Args:
        description: the tool's docstring, shown as it is written.
        examples: the end of ``--help``, shown as they are written.
    """
    return argparse.ArgumentParser(
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_opts(
    parser: argparse.ArgumentParser, help: str = "config keys that override the config file"
) -> None:
    """Add ``opts``: all that stands behind the flags, keys and values of a config in turn.

    Args:
        parser: of the tool, or of one of its commands.
        help: what they are.
    """
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help=help)


def count(text: str) -> int:
    """Read a flag's value that counts something; for argparse's ``type``.

    Raises:
        ValueError: it is no whole number of at least 1.
    """
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def check_score_thresh(score_thresh: float) -> None:
    """Verify a value of ``--score-thresh``.

    Raises:
        InputError: it does not lie between 0 and 1.
    """
    if not 0 <= score_thresh <= 1:
        raise InputError(f"--score-thresh {score_thresh}: it must lie between 0 and 1")


def folder(flag: str) -> Callable[[str], Path]:
    """Make a reader of a flag's value that names a folder; for argparse's ``type``.

    An empty name, as of a shell variable that is not set, would mean the current folder. The reader
    raises an :class:`InputError` for it.
    """

    def read(text: str) -> Path:
        if not text:
            raise InputError(f"{flag} is empty: name a folder")
        return Path(text)

    return read


def one_line(error: InputError | OSError) -> str | None:
    """Get the message of an error as one line, safe for a terminal.

    Returns:
        None for an error of the operating system that concerns no file: not the user's to mend.
    """
    if isinstance(error, OSError):
        # Renaming knows two files, of which the second has the name that the user gave.
        file = error.filename2 or error.filename
        if file is None and error.errno in (errno.ENOSPC, errno.EDQUOT):
            # A write that fails, unlike an open, does not know the name of its file.
            return f"{error.strerror}: a file could not be written"
        return None if file is None else printable(f"{file}: {error.strerror}")
    message = str(error)
    # torch's DataLoader raises an exception of a worker process anew with the worker's whole
    # traceback as its message; the original message is what follows the last class name.
    if "Original Traceback" in message:
        message = message.rpartition(f"{InputError.__name__}: ")[2]
    # Messages of libraries may have several lines, indented.
    return printable(re.sub(r"[ \t]*\n[ \t\n]*", " ", message.strip()), max_length=4000)
