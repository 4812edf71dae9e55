"""`python -m raydpo` is the `raydpo` command."""

import sys

from raydpo.cli import main

if __name__ == "__main__":
    sys.exit(main())
