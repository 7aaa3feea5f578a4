"""Videos and training data.

- `video`, `frames`: reading and writing videos and images; `contact_sheet`: overview pictures.
- `sources`: the interface of a source of training examples, and the procedural world as a source.
- `folder`, `media`: clips in a folder as a source, cut to the buckets of a config.
- `dataset`: data sets of clips in ArrayRecord files; `latent_cache`: those of stored latents.
- `loader`, `order`: training batches as a function of (seed, step).
- `read_ahead`, `workers`: reading ahead in threads or processes.
- `filters`: analysis of frames: shots, black bars, motion, hashes and text.
"""
