"""Makes videos from the command line: ltx-sample --prompt TEXT."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from ltx_jax import config
from ltx_jax.config import SampleConfig, command_line, sampling_options
from ltx_jax.runtime import cli

DESCRIPTION = """Makes videos with LTX-Video.

Without --checkpoint, the small model that ships with the package is used.
--config sets the defaults of the other options: it names a config that ships (ltxv_2b_0_9_6_dev), a
Python file, the JSON beside an earlier video, or a pipeline config of the official repository
(YAML). Without it, the defaults are the settings that the checkpoint stores. Options are named as
in the official inference script."""


@cli.command("sample", interrupted="videos already written are complete")
def main(arguments: list[str]) -> None:
    """Runs the command; returns its exit status."""
    cfg = parse(arguments)

    from ltx_jax.inference.make_videos import make_videos

    make_videos(cfg)


def parse(arguments: Sequence[str]) -> SampleConfig:
    """Reads the options; those left out come from `--config` or from the checkpoint.

    Raises:
      ValueError: for values out of range, and a file that does not hold sampling settings.
      SystemExit: for --help and for options that do not exist.
    """
    import tyro

    options = command_line.parse(
        arguments,
        _Unchecked(**_fields(_defaults(arguments))),
        prog=cli.program_name("sample"),
        description=DESCRIPTION,
        use_underscores=True,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )
    return SampleConfig(**_fields(options))


@dataclasses.dataclass(frozen=True)
class _Unchecked(SampleConfig):
    """Options before they are checked, so that a wrong value gives one line without usage text."""

    def __post_init__(self):
        pass


def _fields(cfg: SampleConfig) -> dict[str, Any]:
    return {field.name: getattr(cfg, field.name) for field in dataclasses.fields(SampleConfig)}


def _defaults(arguments: Sequence[str]) -> SampleConfig:
    """The defaults of the options: the settings of `--config`, or those of the checkpoint."""
    from ltx_jax.checkpoints import embedded_models
    from ltx_jax.checkpoints.load import own_settings

    file = _value(arguments, "--config")
    if file:
        return config.load_sampling(file)
    stored = own_settings(_value(arguments, "--checkpoint") or embedded_models.EMBEDDED)
    if stored is None:
        return SampleConfig()
    return SampleConfig(**dataclasses.asdict(sampling_options(stored)))


def _value(arguments: Sequence[str], option: str) -> str:
    """An option's value, read before the other options are; empty if it is left out."""
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == option:
            return value if equals else next(iter(arguments[i + 1 : i + 2]), "")
    return ""


if __name__ == "__main__":
    sys.exit(main())
