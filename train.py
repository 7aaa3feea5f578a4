"""Trains what a config describes, from a checkout: python train.py is ltx-train."""

import sys

from ltx_jax.train import main

if __name__ == "__main__":
    sys.exit(main())
