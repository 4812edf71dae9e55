"""Compare the rewards of reference and policy: `python jobs/evaluate.py RUNFILE [key=value ...]`."""

import sys

from raydpo.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
