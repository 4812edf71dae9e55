"""Run all stages that the run file asks for, in order: `python jobs/run.py RUNFILE [key=value ...]`."""

import sys

from raydpo.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
