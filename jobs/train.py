"""Train the policy on the pairs: `python jobs/train.py RUNFILE [key=value ...]`."""

import sys

from raydpo.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
