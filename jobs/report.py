"""Write report.html from what the other stages left: `python jobs/report.py RUNFILE [key=value ...]`."""

import sys

from raydpo.cli import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
