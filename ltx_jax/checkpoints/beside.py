"""Where files about a checkpoint lie: beside its weights."""

from pathlib import Path

from etils import epath

from ltx_jax.checkpoints import hub, run_config
from ltx_jax.checkpoints.lock import is_address
from ltx_jax.runtime import files


def place(path: str | Path, name: str) -> epath.Path:
    """The path of a file beside a checkpoint, whether there is one or not.

    It is FOLDER/name for a run, an export or a diffusers folder, and FILE.name for a file.

    Args:
      path: anything that `--checkpoint` takes.
      name: of the file.

    Raises:
      ValueError: if there is no such checkpoint.
    """
    local = path if is_address(path) else hub.resolve(path)
    if is_address(path) or run_config.is_run(local):
        return run_config.split(local)[0] / name
    found = epath.Path(local)
    return found / name if found.is_dir() else found.with_name(f"{found.name}.{name}")


def write_text(file: epath.Path | Path, text: str) -> None:
    """Writes such a file, on this machine whole or not at all."""
    if is_address(file):
        epath.Path(file).write_text(text)
    else:
        files.atomic_write_text(Path(file), text)
