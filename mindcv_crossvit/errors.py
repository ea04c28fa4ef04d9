"""Problems that are told in plain lines, never as a traceback: the user's to mend (exit code 2), or the machine's."""

from __future__ import annotations

import difflib
import io
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from . import presence
from .process import die_with_launcher

USER_ERROR = 2
"""Exit code of a problem in the recipe, the command line or the data."""
DIVERGED = 3
"""Exit code of a run whose loss became infinite or not a number."""
STOPPED = 4
"""Exit code of a run that saved and ended because SIGTERM or SIGINT asked for it."""
UNREADABLE = 5
"""Exit code of a prediction that answered some pictures and could not read others."""
DIFFERS = 6
"""Exit code of an export whose file does not give the checkpoint's logits."""
NOT_SAVED = 7
"""Exit code of a run that ended because a checkpoint could not be written."""
MACHINE = 8
"""Exit code of a run that storage or memory failed; started again, it may go well."""
LONGEST_NAME = 255  # bytes of a file's name, on the usual file systems
MOST_NAMED = 40
"""Names a message lists at the most."""


class Problem(Exception):
    """One or more problems, a line each. code: the exit code they end a script with."""

    code = 1

    def __init__(self, problems: str | Iterable[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class UserError(Problem):
    """The user's to mend: what was given, what was expected and the nearest valid thing."""

    code = USER_ERROR


class MachineError(Problem):
    """Of the machine, not of recipe or data: storage that does not answer, a worker that was killed."""

    code = MACHINE


def nearest(given: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """'did you mean X?' for the nearest known name, or the list of known ones."""
    known = list(known)
    near = difflib.get_close_matches(str(given), known, 1, cutoff)
    if near:
        return f"did you mean {near[0]}?"
    return f"known are {', '.join(known[:MOST_NAMED])}{', ...' if len(known) > MOST_NAMED else ''}"


def printable(text: str) -> str:
    """One line that any terminal takes: what is no letter, sign or space is written as its escape, `\\n` for example.

    Names of files need not be text, and those in files of others may hold anything.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def user_path(text: str, said: str) -> Path:
    """A path as a user writes it, `~` understood. Raises UserError that begins with `said`, the key or option."""
    try:
        path = Path(text).expanduser()
        path.exists()
        if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
            raise ValueError(f"a name of more than {LONGEST_NAME} bytes")
        return path
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, no such user
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{said}: {text!r} is no usable path: {why}") from error


def run_main(main: Callable[[], int]) -> None:
    """Runs a script's main; a Problem is printed line by line and ends it with its code, 2 for a UserError."""
    die_with_launcher()
    presence.begin()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that has no Chinese still gets the line
    cause = ""
    try:
        code = main()
    except Problem as error:
        sys.stdout.flush()
        for problem in error.problems:
            print(f"error: {printable(problem)}", file=sys.stderr, flush=True)
        code, cause = error.code, error.problems[0] if error.problems else ""
    except SystemExit as error:
        presence.end(error.code if isinstance(error.code, int) else int(error.code is not None), str(error.code or ""))
        raise
    except BaseException as error:
        presence.end(1, f"{type(error).__name__}: {error}")
        raise
    presence.end(code, cause)
    sys.exit(code)
