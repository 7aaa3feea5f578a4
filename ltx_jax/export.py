"""Writes checkpoints and adapters in the formats that other projects read: ltx-export RUN OUT

OUT/model.safetensors   the official single file
OUT/upsampler.safetensors   the official file of a latent upsampler, if that is what RUN trains
OUT/text_encoder/, OUT/tokenizer/   its own text encoder, as transformers has it
OUT/settings.json       how it is sampled
OUT/latent_colours.json what its latents look like, if `ltx-preview` was run
OUT/vocabulary.json     what it knows, if `ltx-prepare vocabulary` was run
OUT/diffusers/          what the model classes of diffusers load

OUT is itself a checkpoint that every command reads; OUT/diffusers is not needed for that. If its
text encoder has a vocabulary, name it when you sample: `--text_encoder OUT`.

--merge FILE:STRENGTH merges adapters into what is written. If OUT is a .safetensors file, an
adapter is written: the one that RUN trained, or with --extract_lora BASE the difference of two
checkpoints.
"""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from ltx_jax import config
from ltx_jax.config import AdapterNaming, DType
from ltx_jax.runtime import cli

_log = logging.getLogger(__name__)

Layout = Literal["official", "diffusers"]


def export(
    source: str,
    out: Path,
    *,
    dtype: DType | None = None,
    layouts: Sequence[Layout] | None = None,
    vae: str | None = None,
    text_encoder: str | None = None,
    settings: str | None = None,
    merge: Sequence[str] = (),
) -> list[Path]:
    """Exports a checkpoint; returns the paths that were written.

    Tensors of files are read, changed and written one by one, so that a model need not fit into
    memory. The tensors of a run are loaded all at once.

    Args:
      source: anything that `--checkpoint` of ltx-sample takes.
      out: a folder that is empty or does not exist.
      dtype: dtype of the weights; None keeps that of the source.
      layouts: layouts to write; the text encoder and the settings are part of the official one.
        None writes both, but leaves out that of diffusers, with a warning, if diffusers has no
        class for the model.
      vae: a checkpoint whose VAE is exported in place of the source's.
      text_encoder: file or folder of a text encoder that is exported too; for a model without one.
      settings: a file of configs/sample, or a video's JSON, in place of the source's settings.
      merge: adapters that are merged into its networks, as FILE or FILE:STRENGTH.

    Raises:
      ValueError: if there is no such checkpoint, `out` is not empty, or the diffusers layout is
        requested and diffusers has no class for this model (the official file is written then).
    """
    from ltx_jax.checkpoints import (
        adapter_export,
        diffusers,
        exported_folder,
        latent_colours_file,
        official,
        vocabulary_file,
    )
    from ltx_jax.checkpoints.load import load_checkpoint
    from ltx_jax.inference.arguments import split_lora
    from ltx_jax.inference.text_encoder import ByteTokenizer, TextEncoder

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not an empty folder: choose another")
    given = None if settings is None else config.load_sampling(settings)
    loras = [split_lora(text, "--merge") for text in merge]
    loaded = load_checkpoint(source, vae=vae, dtype=dtype, in_memory=False)
    if loras:
        loaded = adapter_export.merged(loaded, loras)
    encoder = None
    if text_encoder is not None:
        encoder = TextEncoder.load(text_encoder, dtype=dtype or "float32")
    elif loaded.text_encoder is not None:
        encoder = TextEncoder(ByteTokenizer(), *loaded.text_encoder)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    if loaded.upsampler is not None:
        file = out / exported_folder.UPSAMPLER
        official.write_upsampler(file, loaded.upsampler, loaded.upsampler_params)
        return [file]
    wanted = get_args(Layout) if layouts is None else layouts
    if "official" in wanted:
        written.append(out / exported_folder.MODEL)
        official.write(written[0], loaded)
        if encoder is not None:
            encoder.save(out)
            written += [out / exported_folder.TEXT_ENCODER, out / exported_folder.TOKENIZER]
        given = given or loaded.settings
        if given is not None:
            exported_folder.write_settings(out, given)
            written.append(out / exported_folder.SETTINGS)
        if loaded.colours is not None:
            written.append(out / latent_colours_file.NAME)
            latent_colours_file.write(written[-1], loaded.colours)
        known = vocabulary_file.read(source)
        if known is not None:
            written.append(out / vocabulary_file.NAME)
            vocabulary_file.write(written[-1], known)
    if "diffusers" in wanted:
        try:
            diffusers.write(out / "diffusers", loaded)
            written.append(out / "diffusers")
        except ValueError as error:
            if layouts is not None:
                done = ", ".join(map(str, written)) or "nothing"
                raise ValueError(f"{done} written: {error}") from error
            _log.warning("no diffusers directory is written: %s", error)
    return written


@cli.command("export", interrupted="remove the output folder before exporting again")
def main(arguments: list[str]) -> None:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog=cli.program_name("export"), description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("source", help="a training run, or anything that --checkpoint takes")
    parser.add_argument("out", type=Path, help="a new or empty folder, or a new .safetensors file")
    parser.add_argument(
        "--dtype", choices=get_args(DType), help="dtype of the weights; default: kept"
    )
    parser.add_argument(
        "--layouts",
        nargs="+",
        choices=get_args(Layout),
        help="default: official, and diffusers if it has classes for the model",
    )
    parser.add_argument(
        "--vae", help="a checkpoint whose VAE replaces the source's, as with a smaller decoder"
    )
    parser.add_argument("--text_encoder", help="a text encoder, if the source has none")
    parser.add_argument(
        "--settings", help="sampling settings to store: a config, or the JSON beside a video"
    )
    parser.add_argument(
        "--merge",
        nargs="+",
        default=(),
        metavar="FILE[:STRENGTH]",
        help="adapters that are merged into the networks",
    )
    adapter = parser.add_argument_group("adapters", "OUT is a .safetensors file")
    adapter.add_argument(
        "--extract_lora", metavar="BASE", help="writes the difference of SOURCE and this checkpoint"
    )
    adapter.add_argument("--rank", type=int, help="rank of the extracted matrices")
    adapter.add_argument(
        "--energy", type=float, help="instead of a rank: part of each difference to keep, as 0.95"
    )
    adapter.add_argument(
        "--format",
        choices=get_args(AdapterNaming),
        help="program whose tensor names are written; default: comfy",
    )
    adapter.add_argument("--trigger", help="words that a prompt needs, for the metadata")
    options = vars(parser.parse_args(arguments))
    own = {name: options.pop(name) for name in ("extract_lora", *_OF_EXTRACTION, *_OF_ADAPTERS)}
    if own["extract_lora"] is None:
        _refuse({name: own[name] for name in _OF_EXTRACTION}, "is for --extract_lora BASE")
        if options["out"].suffix != ".safetensors":
            _refuse({name: own[name] for name in _OF_ADAPTERS}, "is for an OUT.safetensors")
            for path in export(**options):
                print(path)
            return
    _refuse({name: options[name] for name in _OF_CHECKPOINTS}, "is no option of adapters")
    from ltx_jax.checkpoints import adapter_export

    source, out = options["source"], options["out"]
    shared: dict[str, Any] = dict(
        naming=own["format"] or "comfy", dtype=options["dtype"], trigger=own["trigger"] or ""
    )
    if own["extract_lora"] is None:
        adapter_export.write_trained(source, out, **shared)
    else:
        base, rank, energy = (own[name] for name in ("extract_lora", *_OF_EXTRACTION))
        adapter_export.extract(source, out, base=base, rank=rank, energy=energy, **shared)
    print(out)


_OF_EXTRACTION = ("rank", "energy")
_OF_ADAPTERS = ("format", "trigger")
_OF_CHECKPOINTS = ("layouts", "vae", "text_encoder", "settings", "merge")


def _refuse(options: Mapping[str, Any], why: str) -> None:
    """Refuses options that are set and would have no effect."""
    for name, value in options.items():
        if value:
            raise ValueError(f"--{name} {why}")


if __name__ == "__main__":
    sys.exit(main())
