"""The command line: `fastapi-observe`, or `python -m fastapi_observe`."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastapi_observe.cli.cardinality import add_cardinality
from fastapi_observe.cli.cost import add_cost
from fastapi_observe.cli.demo import add_demo
from fastapi_observe.cli.doctor import add_doctor
from fastapi_observe.cli.output import EXIT_ERROR, InputError
from fastapi_observe.cli.settings import add_settings
from fastapi_observe.cli.show import add_show
from fastapi_observe.cli.slo import add_slo
from fastapi_observe.internal.version import package_version
from fastapi_observe.settings.renames import REMOVED_COMMANDS, RENAMED_COMMANDS, RENAMED_FLAGS

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

OUTPUT_ERRORS: Final = frozenset({errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status. `arguments` default to those of the process."""
    # Python before 3.14 would call a module that is run with -m `__main__.py`.
    name = Path(sys.argv[0]).name
    parser = argparse.ArgumentParser(
        prog="python -m fastapi_observe" if name == "__main__.py" else name,
        description="Traces, metrics and logs for FastAPI and Starlette.",
    )
    parser.add_argument("--version", action="version", version=f"fastapi-observe {package_version('fastapi-observe')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_settings(commands)
    add_doctor(commands)
    add_cardinality(commands)
    add_cost(commands)
    commands_of_slo = add_slo(commands)
    add_show(commands)
    add_demo(commands)
    arguments = sys.argv[1:] if arguments is None else arguments
    message = (
        _describe_rename(arguments)
        or _suggest_command(arguments[:1], commands.choices)
        or (_suggest_command(arguments[1:2], commands_of_slo.choices) if arguments[:1] == ["slo"] else None)
    )
    if message is not None:
        parser.error(message)
    args = parser.parse_args(arguments)
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    """Run the command. Output that cannot be written, such as to a full disk, ends it with a message.

    So does standard input that cannot be read.
    """
    if sys.stdout is None:
        if sys.stderr is not None:
            sys.stderr.write("cannot write the output: standard output is closed\n")
        return EXIT_ERROR
    try:
        status = int(args.run(args))
        sys.stdout.flush()
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_ERROR
    except OSError as error:
        if error.errno not in OUTPUT_ERRORS:
            raise
        # What is still buffered is written when Python exits, where it would fail again.
        with suppress(OSError, ValueError):  # standard error may be full too
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if error.errno != errno.EPIPE:  # the reader has enough, such as head
                sys.stderr.write(f"cannot write the output: {error.strerror}\n")
        return EXIT_ERROR
    return status


def _describe_rename(arguments: Sequence[str]) -> str | None:
    """Return a message about the first command or flag that has a former name, or was removed."""
    command = arguments[0] if arguments else ""
    if command in RENAMED_COMMANDS:
        return f"the command {command} is now {RENAMED_COMMANDS[command]}"
    if command in REMOVED_COMMANDS:
        return f"the command {command} was removed: {REMOVED_COMMANDS[command]}"
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag in RENAMED_FLAGS:
            return f"the flag {flag} is now {RENAMED_FLAGS[flag]}"
    return None


def _suggest_command(arguments: Sequence[str], commands: Collection[str]) -> str | None:
    """Return a message if the first argument nearly spells a command. Argparse does this from Python 3.14 on."""
    for argument in arguments:
        if argument not in commands and (nearest := get_close_matches(argument, commands, 1)):
            return f"there is no command {argument!r}; did you mean {nearest[0]!r}?"
    return None
