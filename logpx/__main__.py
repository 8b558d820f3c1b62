"""`python -m logpx`: the command `logpx`, also where scripts are not on the path."""

import sys

from logpx.command import main

if __name__ == "__main__":
    sys.exit(main())
