"""Trains an adapter that follows references (IC-LoRA) for the released 2B transformer, on one GPU.

    ltx-prepare references data/clips --preprocessor depth:depth-anything/Depth-Anything-V2-Small-hf
    ltx-encode ltxv_2b_ic_lora --data.source data/clips --output data/pairs
    ltx-train ltxv_2b_ic_lora
    ltx-sample --checkpoint runs/ltxv_2b_ic_lora --text_encoder \
        PixArt-alpha/PixArt-XL-2-1024-MS --reference_media_path depth.mp4 --prompt "..."

Any pairs of videos will do: clip_reference.mp4 is what the model is shown, clip.mp4 what it has to
make of it. For edges, leave the first command out and add `--data.reference canny` to the others.
References double the tokens: 57 frames with a reference are as many tokens as 121 without. A few
hundred pairs are usual. This config has not been run with released weights.
"""

import dataclasses
from pathlib import Path

from ltx_jax.config import (
    AdapterConfig,
    BucketConfig,
    DataConfig,
    FlowConfig,
    TrainTransformer,
    load,
)

_lora = load(str(Path(__file__).with_name("ltxv_2b_lora.py")))
assert isinstance(_lora, TrainTransformer)

config = dataclasses.replace(
    _lora,
    flow=FlowConfig(first_frame_probability=0.2),
    # The layers of the public IC-LoRAs.
    adapter=AdapterConfig(rank=64, targets=("attention+feed-forward",)),
    data=DataConfig(
        source="data/pairs",
        reference="files",
        buckets=(BucketConfig(57, 512, 768, 1), BucketConfig(57, 768, 512, 1)),
    ),
    run=dataclasses.replace(
        _lora.run,
        output="runs/ltxv_2b_ic_lora",
        validation_source="data/pairs_held_out",
        validation_first_frames=True,
    ),
)
