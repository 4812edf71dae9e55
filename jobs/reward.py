"""Train a reward model on the run's preference rows: `python jobs/reward.py RUNFILE [key=value ...]`."""

import sys

from raydpo.cli import main

if __name__ == "__main__":
    sys.exit(main(["reward", *sys.argv[1:]]))
