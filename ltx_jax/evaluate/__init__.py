"""Measures models: ltx-evaluate vae|transformer|shapes|judge (see `__main__`).

- `autoencoder`: reconstructions of a VAE.
- `transformer`: the training loss on fixed clips, times and noise.
- `world_table`: how well a model of the procedural world follows its prompts.
- `judge_accuracy`: accuracy of the judge that `world_table` relies on.
- `clip_reader`: the clips that models are measured on.
- `metric_table`: tables of metrics with confidence intervals.
"""
