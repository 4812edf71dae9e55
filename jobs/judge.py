"""Have judges compare the samples of evaluations: `python jobs/judge.py RUNFILE [key=value ...]`."""

import sys

from raydpo.cli import main

if __name__ == "__main__":
    sys.exit(main(["judge", *sys.argv[1:]]))
