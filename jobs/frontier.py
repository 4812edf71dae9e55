"""Compare methods by reward and KL: `python jobs/frontier.py FRONTIERFILE [--only METHOD ...] [--dry-run]`."""

import sys

from raydpo.cli import main

if __name__ == "__main__":
    sys.exit(main(["frontier", *sys.argv[1:]]))
