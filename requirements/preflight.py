"""Say what this machine lacks before anything is installed. Runs on any Python 3."""

import sys

PYTHON = (3, 11)


def missing():
    """One line for each thing that is not there."""
    if sys.version_info < PYTHON:
        yield "Python 3.11 or newer is needed, this is {}.{}: make setup PYTHON=python3.11".format(*sys.version_info)


if __name__ == "__main__":
    complaints = list(missing())
    sys.exit("\n".join(complaints) if complaints else 0)
