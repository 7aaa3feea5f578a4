"""Makes videos, from a checkout: python sample.py is ltx-sample."""

import sys

from ltx_jax.sample import main

if __name__ == "__main__":
    sys.exit(main())
