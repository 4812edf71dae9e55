"""Measure what the best of N completions is worth: `python jobs/bestofn.py RUNFILE [key=value ...]`."""

import sys

from raydpo.cli import main

if __name__ == "__main__":
    sys.exit(main(["bestofn", *sys.argv[1:]]))
