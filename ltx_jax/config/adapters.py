"""Settings of an adapter that is trained beside a frozen network."""

import re
from typing import Literal

from ltx_jax.config.settings import require, settings

# Forms of a frozen network's parameters in memory. The 8-bit ones hold the large matrices in eight
# bits with one scale per output, and everything else in bfloat16.
BaseForm = Literal["float32", "bfloat16", "float16", "int8", "float8"]

# Names for usual choices of layers, as regular expressions over paths such as "blocks/attn1/to_q".
# The first two are of the transformer. "all" are all layers of it, or of a VAE's decoder.
TARGETS: dict[str, tuple[str, ...]] = {
    "attention": (r"^blocks/attn[12]/",),
    "attention+feed-forward": (r"^blocks/(attn[12]|ff)/",),
    "all": (r"",),
}


@settings
class AdapterConfig:
    """Low-rank adapters (LoRA, arXiv 2106.09685), trained in place of the network itself.

    Each linear layer y = x W + b that is a target becomes y = x W + b + alpha / rank (x down) up.
    W and b are those of `run.init_from` and stay as they are. In a convolution, `down` has the same
    window as W, and `up` acts on each position.
    """

    rank: int = 0  # columns of `down` and rows of `up`; 0 trains the network itself
    alpha: float | None = None  # None: equal to the rank, so that the scale is 1
    dropout: float = 0.0  # share of the adapters' inputs that is set to zero in training
    # Layers that get an adapter: "attention", "attention+feed-forward", "all", or regular
    # expressions that are searched for in the layers' paths ("blocks/attn1/to_q").
    targets: tuple[str, ...] = ("attention",)
    # Distribution of the initial `down` (`up` begins as zeros): uniform between +-1/sqrt(inputs),
    # or normal with deviation 1/rank.
    init: Literal["uniform", "normal"] = "uniform"
    # A LoRA in any form that `--lora` takes, whose matrices training begins with instead. It must
    # change the same layers with the same rank; exceptions are named by patterns that begin with
    # "adapter/" in `run.init_missing`, `run.init_extra` and `run.init_redraw`.
    init_from: str | None = None
    base: BaseForm = "bfloat16"  # form of the frozen network's parameters in memory

    def __post_init__(self):
        require(self.rank >= 0, f"adapter.rank must not be negative, got {self.rank}")
        require(
            0 <= self.dropout < 1,
            f"adapter.dropout is a share and must lie in [0, 1), got {self.dropout}",
        )
        require(bool(self.targets), "adapter.targets is empty: name a preset or a layer")
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"adapter.targets: {pattern!r} is not a regular expression: {error}"
                ) from error

    @property
    def patterns(self) -> tuple[str, ...]:
        """The targets as regular expressions."""
        return tuple(pattern for name in self.targets for pattern in TARGETS.get(name, (name,)))

    @property
    def scale(self) -> float:
        """The factor alpha / rank."""
        return (self.rank if self.alpha is None else self.alpha) / self.rank
