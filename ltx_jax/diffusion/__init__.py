"""Rectified flow: everything between noise and latents of a video, except the network's layers.

- `flow`: the path from data to noise, its velocity, schedules of times.
- `noise`: named random draws, which do not depend on the batch or the mesh.
- `positions`, `conditioning`: latents as tokens; images and clips that a video has to show.
- `denoiser`: the interface of the network for sampling and training, and its three forms.
- `guidance`: the prediction of the velocity under guidance. `solver`: how a step uses it.
- `sampler`: the compiled step, and the loop over all steps.
- `latents`: operations on latents before decoding. `calibration`: input ranges of 8-bit linears.
"""

from typing import TYPE_CHECKING

from ltx_jax.runtime.lazy import lazy_attributes

if TYPE_CHECKING:
    from ltx_jax.diffusion.conditioning import Condition, Reference
    from ltx_jax.diffusion.denoiser import Denoiser, Fast, Plain, TeaCache
    from ltx_jax.diffusion.noise import KeyNoise, NoiseSource, seeded
    from ltx_jax.diffusion.solver import DPMSolverPP2M, Euler, Interval, Solver, Stochastic

__all__ = [
    "Condition",
    "DPMSolverPP2M",
    "Denoiser",
    "Euler",
    "Fast",
    "Interval",
    "KeyNoise",
    "NoiseSource",
    "Plain",
    "Reference",
    "Solver",
    "Stochastic",
    "TeaCache",
    "seeded",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "Condition": "ltx_jax.diffusion.conditioning",
        "DPMSolverPP2M": "ltx_jax.diffusion.solver",
        "Denoiser": "ltx_jax.diffusion.denoiser",
        "Euler": "ltx_jax.diffusion.solver",
        "Fast": "ltx_jax.diffusion.denoiser",
        "Interval": "ltx_jax.diffusion.solver",
        "KeyNoise": "ltx_jax.diffusion.noise",
        "NoiseSource": "ltx_jax.diffusion.noise",
        "Plain": "ltx_jax.diffusion.denoiser",
        "Reference": "ltx_jax.diffusion.conditioning",
        "Solver": "ltx_jax.diffusion.solver",
        "Stochastic": "ltx_jax.diffusion.solver",
        "TeaCache": "ltx_jax.diffusion.denoiser",
        "seeded": "ltx_jax.diffusion.noise",
    },
)
