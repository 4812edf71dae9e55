"""Sample completions from the reference, score them and make pairs: `python jobs/sample.py RUNFILE [key=value ...]`."""

import sys

from raydpo.cli import main

if __name__ == "__main__":
    sys.exit(main(["sample", *sys.argv[1:]]))
