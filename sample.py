"""Makes videos, from a checkout: python sample.py is ltx-sample."""

import sys

from ltx_jax.commands import sample

if __name__ == "__main__":
    sys.exit(sample())
