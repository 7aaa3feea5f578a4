"""Trains what a config describes, from a checkout: python train.py is ltx-train."""

import sys

from ltx_jax.commands import train

if __name__ == "__main__":
    sys.exit(train())
