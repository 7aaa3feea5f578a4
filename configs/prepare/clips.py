"""Raw videos to a data set, with the defaults of every stage.

  ltx-prepare clips --input 'raw/**/*' --output data/clips

Clips need captions beside them (`a.mp4`, `a.txt`), or a model that writes them
(`--captions.model NAME`). docs/preparation.md says what every stage does.
"""

from ltx_jax.config import PrepareConfig

config = PrepareConfig()
