"""What an adapter's file says beside its tensors: the scales of its changes, and its origin."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltx_jax.checkpoints import keys
from ltx_jax.checkpoints.checkpoint import Network

# The metadata entry in which diffusers stores peft's settings, as JSON; their names begin with the
# prefix.
PEFT_SETTINGS, PEFT_PREFIX = "lora_adapter_metadata", "transformer."

_OWN = "ltx_jax."  # begins the names of the entries of `Origin`
_TRIGGER = "modelspec.trigger_phrase"  # github.com/Stability-AI/ModelSpec, as kohya writes it


@dataclasses.dataclass(frozen=True)
class Origin:
    """What an adapter was made for and how; empty or None where that is unknown.

    Attributes:
      trigger: words that a prompt needs for the adapter to act.
      base: the release or the file name of the checkpoint that it changes.
      base_hash: hash of that checkpoint.
      dataset: name of the data that it was trained on.
      steps: training steps.
      rank: of its low-rank changes, if all have the same.
    """

    trigger: str = ""
    base: str = ""
    base_hash: str = ""
    dataset: str = ""
    steps: int | None = None
    rank: int | None = None

    def to_metadata(self, network: Network = "transformer") -> dict[str, str]:
        """The metadata of a file that changes a network: ModelSpec's entries, which other programs
        show, and our own."""
        own = {
            f"{_OWN}{name}": str(value)
            for name, value in dataclasses.asdict(self).items()
            if name != "trigger" and value not in ("", None)
        }
        spec = {
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.architecture": f"ltx-video{'-vae' if network == 'vae' else ''}/lora",
            "modelspec.implementation": "https://github.com/Lightricks/LTX-Video",
        }
        return spec | own | ({_TRIGGER: self.trigger} if self.trigger else {})

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "Origin":
        """The inverse of `to_metadata`; files of other programs often say nothing."""

        def number(name: str) -> int | None:
            text = metadata.get(_OWN + name, "")
            return int(text) if text.isdecimal() and len(text) < 20 else None

        texts = {name: metadata.get(_OWN + name, "") for name in ("base", "base_hash", "dataset")}
        trigger = metadata.get(_TRIGGER, "")
        return cls(trigger, steps=number("steps"), rank=number("rank"), **texts)


class Alphas:
    """The scales of low-rank changes, by the settings in the metadata or in peft's JSON file."""

    def __init__(self, path: Path, metadata: Mapping[str, str]):
        """Reads the settings.

        Args:
          path: the adapter's file; peft stores the settings in `adapter_config.json` beside it.
          metadata: of that file, where diffusers stores them.

        Raises:
          ValueError: if there are settings that cannot be read.
        """
        self._where: str | None = None
        beside = path.with_name("adapter_config.json")
        if PEFT_SETTINGS in metadata:
            where, text = f"{PEFT_SETTINGS} of {path}", metadata[PEFT_SETTINGS]
        elif path.name.startswith("adapter_model") and beside.is_file():
            where, text = str(beside), beside.read_text(encoding="utf-8", errors="replace")
        else:
            return
        try:
            stored = dict(json.loads(text))
            settings = {key.removeprefix(PEFT_PREFIX): x for key, x in stored.items()}
            self._alpha = _finite(settings.get("lora_alpha") or 0) or None
            self._alphas = _Patterns(settings.get("alpha_pattern"))
            self._rank = _finite(settings.get("r") or 0) or None
            self._ranks = _Patterns(settings.get("rank_pattern"))
            self._is_rank_stabilised = bool(settings.get("use_rslora"))
        except (ValueError, TypeError, RecursionError, re.error) as error:
            raise ValueError(f"{where} cannot be read: {error}") from error
        self._where = where

    def scale(self, module: str, rank: int, stored: float | None) -> float:
        """The factor of a change; without any alpha it is 1.

        Args:
          module: official name.
          rank: of this module's change.
          stored: the alpha beside the module's tensors, if there is one.

        Raises:
          ValueError: if the settings say that the change has another rank.
        """
        if stored is not None:
            return stored / rank
        if self._where is None:
            return 1.0
        names = (keys.diffusers_transformer_name(module), module)
        expected = self._ranks.value(names, self._rank)
        if expected not in (None, rank):
            raise ValueError(
                f"the change of {module} has the rank {rank}, and {self._where} says {expected:g}: "
                "the two are not of one adapter"
            )
        alpha = self._alphas.value(names, self._alpha)
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self._is_rank_stabilised else rank)


def _finite(number: Any) -> float:
    if not math.isfinite(number):
        raise ValueError(f"{number} is no finite number")
    return float(number)


class _Patterns:
    """Values of modules whose names end with a pattern, as peft's `get_pattern_key` matches."""

    def __init__(self, patterns: Any):
        self._values = [
            (re.compile(rf"(.*\.)?({key})"), _finite(value))
            for key, value in dict(patterns or {}).items()
        ]

    def value(self, names: tuple[str, ...], default: float | None) -> float | None:
        """The value of the first pattern that fits one of the names."""
        for pattern, value in self._values:
            if any(pattern.fullmatch(name) for name in names):
                return value
        return default
