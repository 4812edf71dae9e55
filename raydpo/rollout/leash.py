"""`python -m raydpo.rollout.leash COMMAND`: a command that lives no longer than whoever has started it.

Its processes are a group of their own, and are killed when standard input ends, as it does when the starter dies in
whatever way, and when the command itself ends, for what that has left behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress


def main(command: list[str]) -> int:
    """Run the command; returns its exit code."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def kill() -> None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)

    def watch() -> None:
        while os.read(0, 1):
            pass
        kill()

    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    kill()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
