"""`python -m gan <command>`."""

import sys

from gan.commands import main

if __name__ == "__main__":
    sys.exit(main())
