"""Train a GAN: `python train.py model=wnet`. See README.md for what can be overridden."""

import sys

from gan.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
