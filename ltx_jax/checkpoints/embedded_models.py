"""The models that ship with the package: the folders of `ltx_jax/assets`, each with its card.

"embedded:NAME" names the model in the folder NAME, and "embedded" the one that is used if no model
is named. Everything about a model is in its folder (`exported_folder`): another model ships by
adding a folder.
"""

from pathlib import Path

EMBEDDED = "embedded"
DEFAULT = "shapes"  # what "embedded" alone names
FOLDERS = Path(__file__).parents[1] / "assets"
CARD = "MODEL_CARD.md"


def names() -> tuple[str, ...]:
    """The names of all models that ship, in alphabetical order."""
    if not FOLDERS.is_dir():
        return ()
    folders = (path for path in FOLDERS.iterdir() if path.is_dir())
    return tuple(sorted(path.name for path in folders if path.name[0] not in "._"))


def is_embedded(path_or_id: str | Path) -> bool:
    """Whether a name is that of a model that ships, by its form."""
    name = str(path_or_id)
    return name == EMBEDDED or name.startswith(f"{EMBEDDED}:")


def full_name(path_or_id: str) -> str:
    """The name "embedded:NAME" for "embedded", which will not always name the same model; any
    other path or name as it is."""
    return f"{EMBEDDED}:{DEFAULT}" if path_or_id == EMBEDDED else path_or_id


def local(path: str | Path) -> Path:
    """The folder of a model that ships; any other path as it is, with ~ expanded.

    Raises:
      ValueError: as `folder` does.
    """
    return folder(path) if is_embedded(path) else Path(path).expanduser()


def folder(name: str | Path) -> Path:
    """The folder of a model that ships.

    Args:
      name: "embedded" or "embedded:NAME".

    Raises:
      ValueError: if no such model ships; lists those that do.
    """
    own = full_name(str(name)).removeprefix(f"{EMBEDDED}:")
    if own not in names():
        listed = ", ".join(f"{EMBEDDED}:{known}" for known in names())
        raise ValueError(
            f"no model {own!r} ships with this version, but {listed or 'none at all'}: name one, "
            "--checkpoint FILE, FOLDER or REPOSITORY"
        )
    return FOLDERS / own
