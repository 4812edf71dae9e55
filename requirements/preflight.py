"""Say what this machine lacks before anything is installed. Runs on any Python 3."""

import os
import shutil
import sys
import sysconfig

PYTHON = (3, 11)


def missing():
    """One line for each thing that is not there."""
    if sys.version_info < PYTHON:
        yield "Python 3.11 or newer is needed, this is {}.{}: make setup PYTHON=python3.11".format(*sys.version_info)
        return
    why = "DeepSpeed compiles its CPU communication at first use"
    if shutil.which("g++") is None:
        yield f"g++ is missing ({why}). On Debian: apt-get install g++"
    header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
    if not os.path.exists(header):
        yield f"{header} is missing ({why}). On Debian: apt-get install python3-dev"


if __name__ == "__main__":
    complaints = list(missing())
    sys.exit("\n".join(complaints) if complaints else 0)
