"""What a model knows, in words: ltx-prepare vocabulary SOURCE CHECKPOINT

Writes what captions of SOURCE (shapes, or emoji:DIR) can name to CHECKPOINT/vocabulary.json. With
it, ltx-sample names the words of a prompt that the model does not know, and the web page lists what
to ask for. `ltx-export` copies the file.
"""

from pathlib import Path

from etils import epath

from ltx_jax.checkpoints import beside, vocabulary_file
from ltx_jax.data.sources import EMOJI, World
from ltx_jax.runtime import cli
from ltx_jax.vocabulary import Vocabulary


def of_source(source: str) -> Vocabulary:
    """The vocabulary of captions.

    Args:
      source: "shapes" or "emoji:DIR", as in `data.source`.

    Raises:
      ValueError: for other sources, and if DIR holds no data set of emoji.
    """
    if World.has(source):
        from ltx_jax.world import vocabulary

        return vocabulary.vocabulary()
    if source.startswith(EMOJI):
        from ltx_jax.config import DataConfig
        from ltx_jax.data.emoji import Emoji
        from ltx_jax.emoji import vocabulary

        return vocabulary.vocabulary(Emoji(source, DataConfig(), seed=0).catalogue)
    raise ValueError(f"the captions of {source} have no grammar: shapes and emoji:DIR have one")


def write_vocabulary(source: str, checkpoint: str | Path) -> epath.Path:
    """Writes the vocabulary of captions beside a checkpoint; returns the path of the file.

    Args:
      source: as for `of_source`.
      checkpoint: a run, or anything that `--checkpoint` takes.

    Raises:
      ValueError: as `of_source` does, and if there is no such checkpoint.
    """
    file = beside.place(checkpoint, vocabulary_file.NAME)
    vocabulary_file.write(file, of_source(source))
    return file


def main(arguments: list[str]) -> None:
    """Runs the command."""
    parser = cli.subcommand_parser("prepare", "vocabulary", __doc__)
    parser.add_argument("source", help="shapes, or emoji:DIR")
    parser.add_argument("checkpoint", help="a run, or anything that --checkpoint takes")
    options = parser.parse_args(arguments)
    print(write_vocabulary(options.source, options.checkpoint))
