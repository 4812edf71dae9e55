"""Fine-tune the model on completions before preference training: `python jobs/sft.py RUNFILE [key=value ...]`."""

import sys

from raydpo.cli import main

if __name__ == "__main__":
    sys.exit(main(["sft", *sys.argv[1:]]))
