"""Measures models: ltx-evaluate vae|transformer|shapes|emoji|judge (see `__main__`).

- `autoencoder`: reconstructions of a VAE.
- `transformer`: the training loss on fixed clips, times and noise.
- `world_table`: how well a model of the procedural world follows its prompts.
- `emoji_table`: how well a model of animated emoji follows its prompts; `emoji_benchmark`: prompts,
  videos and verdicts; `emoji_objects`, `emoji_retrieval`, `emoji_motion`: the judge.
- `judge_accuracy`: accuracy of the judge that `world_table` relies on.
- `clip_reader`: the clips that models are measured on.
- `metric_table`: tables of metrics with confidence intervals.
"""
