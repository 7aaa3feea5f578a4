"""Data preparation: from raw videos to a training set (python -m ltx_jax.prepare, see `__main__`).

- `input_files`: finds source files with their captions.
- `examine`: shots, clips, black bars, motion and hashes of a source.
- `duplicates`: near-duplicates in the whole set.
- `scoring`, `aesthetics`, `captioner`, `pretrained`: expensive scores and captions by models.
- `clip_video`: decodes clips, and encodes them as they are stored.
- `beam_pipeline`, `result_cache`: runs these stages with Apache Beam, and caches their results.
- `emoji`: the data set of animated emoji, which needs none of the above.
- `records`, `clip_table`, `html_report`: the record of a clip, and the tables and report of a run.
"""
