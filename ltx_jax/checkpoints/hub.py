"""Resolves a path, a Hugging Face repository or the name of an embedded model to a local path."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from ltx_jax.checkpoints import embedded_models

# The files of a diffusers directory; its tokenizer and text encoder are named separately.
CHECKPOINT_FILES = (
    "model_index.json",
    "transformer/*.json",
    "transformer/*.safetensors",
    "vae/*.json",
    "vae/*.safetensors",
    "scheduler/*.json",
)
UPSAMPLER_FILES = ("model_index.json", "latent_upsampler/*")
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_REPOSITORY = re.compile(rf"({_NAME}/{_NAME})(?:/(.+))?")


def resolve(path_or_id: str | Path, patterns: Sequence[str] = CHECKPOINT_FILES) -> Path:
    """The local path of a checkpoint, downloading it first if it is named by its repository.

    Args:
      path_or_id: "embedded" and "embedded:NAME" are models that ship with the package
        (`embedded_models`). Any other path that exists is returned as it is. Else it names a
        repository: `org/repo` for the files that fit `patterns`, or `org/repo/file.safetensors` for
        one file.

    Raises:
      ValueError: if there is no such path, and no such repository can be reached; says what to
        download and where to put it.
    """
    path = embedded_models.local(path_or_id)
    if path.exists():
        return path
    match = _REPOSITORY.fullmatch(str(path_or_id))
    if match is None or _is_path(match[1], match[2]):
        raise ValueError(
            f"{path_or_id} does not exist{_nearest(path)}. Give a file, a folder, or a Hugging "
            "Face repository: org/repo or org/repo/file.safetensors. (A name that begins "
            "with a folder that exists here is always taken for a path.)"
        )
    return _download(match[1], match[2], patterns)


_WEIGHTS = (".safetensors", ".gguf")
_FILES = (*_WEIGHTS, ".sft", ".json", ".py", ".yaml", ".pt", ".pth", ".ckpt", ".bin", ".npz")


def _is_path(repository: str, file: str | None) -> bool:
    """Whether a name that could be a repository is a mistyped path, so that the hub is not asked.

    Such a name begins with a folder that exists here, or has the ending of a file where the
    repository's name should be, or names a file whose ending is not that of weights.
    """
    if Path(repository).parent.is_dir():
        return True
    return Path(repository).suffix in _FILES if file is None else Path(file).suffix not in _WEIGHTS


def _nearest(path: Path) -> str:
    """The end of an error that asks whether the most similar name in the folder was meant."""
    folder = path.parent
    names = [item.name for item in folder.iterdir()] if folder.is_dir() else []
    similar = difflib.get_close_matches(path.name, names, n=1)
    return f" (did you mean {folder / similar[0]}?)" if similar else ""


def _download(repository: str, file: str | None, patterns: Sequence[str]) -> Path:
    from huggingface_hub import errors, hf_hub_download, snapshot_download

    named = f"{repository}/{file}" if file else repository
    try:
        if file:
            return Path(hf_hub_download(repository, file))
        folder = Path(snapshot_download(repository, allow_patterns=list(patterns)))
    except errors.GatedRepoError as error:
        raise ValueError(
            f"{named} is gated: accept its terms on https://huggingface.co/{repository}, then log "
            "in with `hf auth login`"
        ) from error
    except errors.LocalEntryNotFoundError as error:  # offline, or no connection
        raise ValueError(_offline(named, repository, file, patterns)) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ValueError(
            f"{named} is neither a local path nor a public Hugging Face repository: check the "
            "spelling, or log in with `hf auth login` if it is private"
        ) from error
    except errors.EntryNotFoundError as error:
        raise ValueError(
            f"the Hugging Face repository {repository} has no file {file}: see "
            f"https://huggingface.co/{repository}/tree/main"
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise ValueError(f"{_offline(named, repository, file, patterns)} ({error})") from error
    if not any(any(folder.glob(pattern)) for pattern in patterns):
        raise ValueError(
            f"the Hugging Face repository {repository} holds none of {list(patterns)}. Name one of "
            f"its files: {repository}/FILE.safetensors, see "
            f"https://huggingface.co/{repository}/tree/main"
        )
    return folder


def _offline(named: str, repository: str, file: str | None, patterns: Sequence[str]) -> str:
    if file:
        what = f"hf download {repository} {file} --local-dir DIR"
        then = f"DIR/{file}"
    else:
        options = " ".join(f"--include '{pattern}'" for pattern in patterns)
        what, then = f"hf download {repository} {options} --local-dir DIR", "DIR"
    return (
        f"{named} is no local path, and Hugging Face cannot be reached (or HF_HUB_OFFLINE is set) "
        f"and its cache does not hold it. Where there is a network, run `{what}`, bring DIR here, "
        f"and give {then} as the path"
    )
