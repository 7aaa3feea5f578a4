"""What every text encoder's network has in common, and its layout in the files of transformers.

A new kind of text encoder is a subclass of `config.TextEncoderConfig`, whose `network` names a
subclass of `TextNetwork`.
"""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from ltx_jax.config import ExecutionConfig, TextEncoderConfig
from ltx_jax.models.layers import RMSNorm, dot_general, param
from ltx_jax.runtime.lazy import load_named


class TextNetwork(nn.Module):
    """Maps token ids (b, m) and a mask (b, m), 1 at tokens, to embeddings (b, m, `cfg.width`).

    Tokens must not depend on padding. The embeddings at padding may be anything finite.

    Attributes:
      cfg: the architecture, a `config.TextEncoderConfig`.
      execution: how it is computed; embeddings are in `execution.dtype`.
      identity_parameters: paths of small parameters that any training changes; a hash of them tells
        encoders of the same architecture apart.
      file_settings: entries that `config.json` of transformers must have for this network: name ->
        (accepted values, the value that a missing entry stands for).
      file_optional: fields of the configuration that `config.json` may lack.
      file_prefix: beginning of tensor names that a file may have or lack.
      file_ignored: regular expression of the names of tensors that the network does not use.
    """

    cfg: Any
    execution: ExecutionConfig = ExecutionConfig()

    identity_parameters: ClassVar[tuple[str, ...]]
    file_settings: ClassVar[Mapping[str, tuple[tuple[Any, ...], Any]]] = {}
    file_optional: ClassVar[tuple[str, ...]] = ()
    file_prefix: ClassVar[str] = ""
    file_ignored: ClassVar[str] = ""

    def __call__(
        self, token_ids: Int[Array, "b m"], mask: Int[Array, "b m"]
    ) -> Float[Array, "b m d"]:
        """The embeddings."""
        raise NotImplementedError

    @nn.nowrap
    def repeat(
        self, layer: type[nn.Module], count: int, name: str, x: Array, *shared: Any
    ) -> Array:
        """Applies `count` layers in turn; `nn.scan` stacks their parameters on a leading axis.

        Args:
          layer: class of a layer; it has the `cfg` and the `execution` of this network, and is
            called with the output of the layer before and with `shared`; it returns its output and
            None.
          count: how many layers.
          name: name of the stacked parameters.
          x: input of the first layer.
          *shared: what every layer reads.
        """
        layers = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=count,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = layers(self.cfg, self.execution, name=name)(x, *shared)
        return x

    @classmethod
    def file_name(cls, path: tuple[str, ...]) -> str:
        """The name in the files of the parameter at a path, where {} stands for the layer's number.

        By default the name is made from the path: "layers.{}.mlp.up_proj.weight" for ("layers",
        "mlp.up_proj", "kernel").
        """
        *modules, leaf = path
        modules[:1] = ["layers.{}"] if modules[:1] == ["layers"] else modules[:1]
        return ".".join([*modules, leaf if leaf == "bias" else "weight"])

    @classmethod
    def file_extras(cls, cfg: Any) -> dict[str, Any]:
        """Further entries of the `config.json` that is written."""
        del cfg
        return {}


def network_class(cfg: TextEncoderConfig | type[TextEncoderConfig]) -> type[TextNetwork]:
    """The class of the network that a configuration describes."""
    kind = cfg if isinstance(cfg, type) else type(cfg)
    return load_named(kind.network, f"{kind.__name__}.network")


def text_network(
    cfg: TextEncoderConfig, execution: ExecutionConfig = ExecutionConfig()
) -> TextNetwork:
    """Makes the network that a configuration describes."""
    return network_class(cfg)(cfg, execution)


def linear(
    execution: ExecutionConfig,
    features: int,
    axes: tuple[str, str],
    name: str,
    *,
    scale: float | None = None,
    dtype: str | None = None,
) -> nn.Dense:
    """A linear layer without bias that accumulates and returns float32.

    `scale` is the standard deviation of the initial weights, by default that which keeps the
    variance of the input; `dtype` replaces that of `execution`.
    """
    init = nn.initializers.lecun_normal() if scale is None else nn.initializers.normal(scale)
    return nn.Dense(
        features,
        use_bias=False,
        dtype=dtype or execution.dtype,
        param_dtype=execution.param_dtype,
        kernel_init=param(axes, init),
        dot_general=functools.partial(dot_general, preferred_element_type=jnp.float32),
        name=name,
    )


def rms_norm(execution: ExecutionConfig, epsilon: float, name: str) -> RMSNorm:
    """A norm over the channels of the residual stream, with a gain."""
    return RMSNorm(epsilon, ("embed",), execution.param_dtype, name=name)


class TokenEmbedding(nn.Module):
    """The embeddings of a vocabulary, as float32."""

    vocab_size: int
    width: int
    execution: ExecutionConfig = ExecutionConfig()

    @nn.compact
    def __call__(self, token_ids: Int[Array, "b m"]) -> Float[Array, "b m d"]:
        init = param((None, "embed"), nn.initializers.normal(1.0))
        shape = self.vocab_size, self.width
        table = self.param("embedding", init, shape, self.execution.param_dtype)
        return jnp.take(table, token_ids, axis=0).astype(jnp.float32)
