"""A checkpoint in memory, whichever kind of file or folder it was read from."""

import dataclasses
from typing import Any, Literal, get_args

import numpy as np

from ltx_jax.config import (
    DType,
    SamplingConfig,
    SchedulerConfig,
    TextEncoderConfig,
    TransformerConfig,
    UpsamplerConfig,
    VAEConfig,
)
from ltx_jax.models.latent_colours import LatentColours
from ltx_jax.models.vae import LatentStatistics

Network = Literal["transformer", "vae"]
NETWORKS: tuple[Network, ...] = get_args(Network)
NOUNS: dict[Network, str] = {"transformer": "transformer", "vae": "VAE"}  # for messages


def network_of(cfg: TransformerConfig | VAEConfig) -> Network:
    """Which network a configuration is of."""
    return "vae" if isinstance(cfg, VAEConfig) else "transformer"


@dataclasses.dataclass
class Checkpoint:
    """Configurations and parameters of one model, and the other contents of its files.

    Any network may be absent: a VAE alone is a checkpoint too. With the fields from `tolerated` on,
    an official file that was read can be written again with the same bytes; all may be left empty.
    """

    transformer: TransformerConfig | None = None
    transformer_params: Any = None  # plain nested dicts of arrays, as the modules have them
    vae: VAEConfig | None = None
    vae_params: Any = None
    # Dtype in which the VAE encodes training clips: that of the run that trained the VAE.
    vae_dtype: DType = "float32"
    statistics: LatentStatistics | None = None  # None: the latents are not normalised
    colours: LatentColours | None = None  # what the latents look like, for previews
    scheduler: SchedulerConfig = SchedulerConfig()
    allowed_inference_steps: tuple[float, ...] | None = None  # times of a distilled model
    settings: SamplingConfig | None = None  # sampling settings stored with the model, if any
    # Configuration, parameters, caption length in tokens. Runs of train.py and exported folders may
    # hold a byte-level one; the official layouts have no place for it.
    text_encoder: tuple[TextEncoderConfig, Any, int] | None = None
    # A latent upsampler is a checkpoint of its own: a file of its own, or a run that trains it.
    upsampler: UpsamplerConfig | None = None
    upsampler_params: Any = None
    # Tensors of the file that no network uses, under their names in the file.
    tolerated: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)  # of the file, raw
    # Official names, prefix included, to their spelling in the file where that differs; None: the
    # file has no such tensor.
    names: dict[str, str | None] = dataclasses.field(default_factory=dict)
    # Official names whose dtype in the file is narrower than that of the parameter.
    dtypes: dict[str, str] = dataclasses.field(default_factory=dict)
    source_hash: str = ""  # tensors.fingerprint of the files
    # Those of the files of each network, if they are not the same.
    hashes: dict[Network, str] = dataclasses.field(default_factory=dict)

    def base_hash(self, network: Network) -> str:
        """The hash by which adapters of a network name the checkpoint that it is of."""
        return self.hashes.get(network, self.source_hash)

    def network(self, network: Network) -> Any:
        """The configuration of a network; None if there is none."""
        return self.transformer if network == "transformer" else self.vae
