"""Writes a checkpoint in both PyTorch layouts: python -m ltx_jax.export RUN OUT.

OUT/model.safetensors   the official single file
OUT/diffusers/          what the model classes of diffusers load
OUT/text_encoder/, OUT/tokenizer/   a run's own text encoder, as transformers has it
"""

import argparse
import sys
from pathlib import Path


def export(source: str, out: Path) -> list[Path]:
    """Writes whatever `--checkpoint` takes; returns the paths written.

    Raises:
      ValueError: if there is no such checkpoint, `out` is not empty, or diffusers has no class for
        this model (the official file is there then).
    """
    from ltx_jax.checkpoints import checkpoint, diffusers, official
    from ltx_jax.text import ByteTokenizer, TextEncoder

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is no empty folder: choose another")
    loaded = checkpoint.load(source)
    written = [out / "model.safetensors"]
    out.mkdir(parents=True, exist_ok=True)
    official.write(written[0], loaded)
    if loaded.text_encoder is not None:
        cfg, params, max_tokens = loaded.text_encoder
        TextEncoder(ByteTokenizer(), cfg, params, max_tokens).save(out)
        written += [out / "text_encoder", out / "tokenizer"]
    try:
        diffusers.write(out / "diffusers", loaded)
    except ValueError as error:
        done = ", ".join(str(path) for path in written)
        raise ValueError(f"{done} written, but not the diffusers directory: {error}") from error
    return [*written, out / "diffusers"]


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="ltx_jax.export", description=summary)
    parser.add_argument(
        "source", help="a run of train.py, or anything sample.py's --checkpoint takes"
    )
    parser.add_argument("out", type=Path, help="a folder that is empty or does not exist")
    given = parser.parse_args(arguments)
    try:
        for path in export(given.source, given.out):
            print(path)
    except (ValueError, OSError) as error:
        print(f"ltx_jax.export: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
