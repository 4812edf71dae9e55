"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: its message names the thing, the value and the remedy.

    The command line prints the message without a traceback and exits with a code other than 0. Everything else that
    is raised is a defect of ours or of a library, and keeps its traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self._message = message  # Ray Data appends its advice on retries to `args`

    def __str__(self) -> str:
        return self._message


def reason(error: Exception) -> str:
    """What a library's exception says, on one line: its type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
