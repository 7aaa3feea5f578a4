"""The tiny models behind the traces of the released pipeline, and the traces' random draws."""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from golden_weights import golden_tensor
from quick import QUICK

from ltx_jax.checkpoints import keys
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.config import (
    BlockConfig,
    SamplingConfig,
    SchedulerConfig,
    TransformerConfig,
    VAEConfig,
)
from ltx_jax.diffusion.conditioning import Condition
from ltx_jax.inference.pipeline import LTXPipeline
from ltx_jax.models.vae import LatentStatistics
from ltx_jax.runtime.compiled import Programs

FOLDER = pathlib.Path(__file__).parent / "golden"
NAMES = sorted(path.stem.removeprefix("pipe_") for path in FOLDER.glob("pipe_*.npz"))

TRANSFORMER = TransformerConfig(
    num_layers=3,
    num_attention_heads=4,
    attention_head_dim=16,
    in_channels=8,
    out_channels=8,
    caption_channels=32,
    causal_temporal_positioning=True,
)
_UP = BlockConfig("compress_all", multiplier=2, residual=True)
VAE = VAEConfig(
    encoder_blocks=(
        BlockConfig("res_x"),
        BlockConfig("compress_space_res"),
        BlockConfig("res_x", num_layers=2),
        BlockConfig("compress_time_res"),
        BlockConfig("res_x"),
        BlockConfig("compress_all_res"),
        BlockConfig("res_x"),
        BlockConfig("compress_all_res"),
        BlockConfig("res_x"),
    ),
    decoder_blocks=(BlockConfig("res_x"), *(_UP, BlockConfig("res_x")) * 3),
    latent_channels=8,
    encoder_base_channels=8,
    decoder_base_channels=8,
    timestep_conditioning=True,
)
LINEAR_QUADRATIC = SchedulerConfig("LinearQuadratic")
SD3 = SchedulerConfig(shifting="SD3", target_shift_terminal=0.1)


def _params(leaves: list[keys.Leaf]) -> dict[str, Any]:
    """The golden weights as one of our trees."""
    tree: dict[str, Any] = {}
    for leaf in leaves:
        stored = [leaf.from_stored(golden_tensor(name, leaf.stored_shape)) for name in leaf.names]
        *path, last = leaf.path
        functools.reduce(lambda node, name: node.setdefault(name, {}), path, tree)[last] = (
            jnp.asarray(np.stack(stored) if leaf.stacked else stored[0])
        )
    return tree


@functools.cache
def checkpoint(scheduler: SchedulerConfig = LINEAR_QUADRATIC) -> Checkpoint:
    """The transformer and the VAE of the traces."""
    statistics = np.load(FOLDER / "trace_statistics.npz")
    return Checkpoint(
        transformer=TRANSFORMER,
        transformer_params=_transformer_params(),
        vae=VAE,
        vae_params=_vae_params(),
        statistics=LatentStatistics(
            mean=jnp.asarray(statistics["mean"]), std=jnp.asarray(statistics["std"])
        ),
        scheduler=scheduler,
    )


@functools.cache
def pipeline(scheduler: SchedulerConfig = LINEAR_QUADRATIC) -> LTXPipeline:
    """One for all tests, so that what one has compiled serves the next."""
    pipe = LTXPipeline(checkpoint(scheduler), dtype="float32")
    pipe.programs = Programs(QUICK)
    return pipe


@functools.cache
def _transformer_params() -> dict[str, Any]:
    return _params(keys.transformer_leaves(keys.transformer_boxed(TRANSFORMER)))


@functools.cache
def _vae_params() -> dict[str, Any]:
    return _params(keys.vae_leaves(VAE, keys.vae_boxed(VAE)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RecordedNoise:
    """A `NoiseSource` of recorded draws: of each name, (index, *shape)."""

    draws: dict[str, Any]

    def draw(self, name, shape, index=0):
        drawn = jnp.asarray(self.draws[name])[index]
        assert drawn.shape == shape, f"{name} was drawn as {drawn.shape}, and {shape} is asked for"
        return drawn


def channels_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -1)


@dataclasses.dataclass(frozen=True)
class Trace:
    """One recorded run of the released pipeline.

    Attributes:
      data: all recorded arrays.
      steps: how many calls of the network there are.
      arguments: for `LTXPipeline`.
    """

    data: dict[str, np.ndarray]
    scheduler: SchedulerConfig
    steps: int
    arguments: dict[str, Any]


@functools.cache
def load(name: str) -> Trace:
    """Reads a trace and turns its arguments into ours."""
    data = dict(np.load(FOLDER / f"pipe_{name}.npz"))
    raw = json.loads(str(data["args"]))
    legal = {field.name for field in dataclasses.fields(SamplingConfig)}
    changes = {key: value for key, value in raw.items() if key in legal}
    changes |= {"image_cond_noise_scale": raw.get("image_cond_noise_scale", 0.0)}
    changes |= {"negative_prompt": "", "stg_mode": "attention_values"}
    if "timesteps" in changes:
        changes.pop("num_inference_steps")
    items = json.loads(str(data["cond_items"]))
    conditions = [
        Condition(channels_last(data[f"cond_media/{i}"]), frame, strength)
        for i, (frame, strength) in enumerate(items)
    ]
    arguments = dict(
        embeddings=dict(
            prompt_embeds=data["prompt_embeds"],
            prompt_mask=data["prompt_mask"],
            negative_embeds=data["neg_embeds"],
            negative_mask=data["neg_mask"],
        ),
        conditions=conditions,
        noise=_recorded(data, [i for i, (frame, _) in enumerate(items) if frame > 0]),
        **changes,
    )
    if "media_items" in data:
        arguments["input_media"] = channels_last(data["media_items"])
    return Trace(
        data, SD3 if name == "sd3_sched" else LINEAR_QUADRATIC, len(data["timesteps"]), arguments
    )


def _recorded(data: dict[str, np.ndarray], extra: list[int]) -> RecordedNoise:
    """Names the draws; `extra` are the indices of the conditions with extra tokens."""
    t, h, w = data["output"].shape[2:]
    if data["output"].shape[1] == 3:
        t, h, w = (t - 1) // 8 + 1, h // 32, w // 32
    draws: dict[str, list[np.ndarray]] = {}
    posteriors, extra = 0, list(extra)
    for i, tag in enumerate(data["draw_tags"]):
        draw = data[f"draw/{i}"]
        if tag == "vae_posterior":
            name = "input" if "media_items" in data else f"posterior/{posteriors}"
            posteriors += 1
        elif tag == "randn_like":
            name = "decode" if draw.ndim == 5 else "stochastic"
        elif "initial" not in draws:
            name, draw = "initial", draw.reshape(1, t, h, w, -1)
        else:
            name = f"condition/{extra.pop(0)}" if draw.ndim == 5 else "image_condition"
        if draw.ndim == 5 and name != "initial":
            draw = channels_last(draw)
        draws.setdefault(name, []).append(draw)
    return RecordedNoise({name: np.stack(drawn) for name, drawn in draws.items()})
