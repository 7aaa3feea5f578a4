"""Makes videos: `python sample.py --checkpoint FILE --prompt TEXT`, or see `--help`."""

import sys

from ltx_jax.sample import main

if __name__ == "__main__":
    sys.exit(main())
