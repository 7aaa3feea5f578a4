"""Aesthetic scores: a linear ranking head on a frozen image encoder of `transformers`.

The head is trained on pairs of pictures of which people preferred one (Bradley-Terry model: the
probability of a preference is the logistic function of the difference of scores). Both pictures of
a pair have a label in common, so that the score reflects quality rather than popular subjects.
LAION's heads can be used too.
"""

import argparse
import csv
import io
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize

from ltx_jax.data import inputs, video
from ltx_jax.prepare import pretrained
from ltx_jax.runtime import cli

_BATCH = 32


class Encoder:
    """An image encoder: CLIP, SigLIP, or another model with `get_image_features`.

    Raises:
      ValueError: if the model cannot be loaded or does not encode images.
    """

    def __init__(self, name: str):
        self._processor, self._model, self._device = pretrained.load(
            "image encoder", name, "AutoImageProcessor", "AutoModel"
        )
        if not hasattr(self._model, "get_image_features"):
            kind = type(self._model).__name__
            raise ValueError(f"{name} is a {kind}, which does not encode images")

    def __call__(
        self, pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]]
    ) -> Float32[np.ndarray, "n d"]:
        """Embeddings of pictures, each normalised to length 1."""
        inputs = self._processor(images=list(pictures), return_tensors="pt")
        inputs = inputs.to(self._device, self._model.dtype)
        with torch.inference_mode():
            embeddings = self._model.get_image_features(**inputs)
        embeddings = getattr(embeddings, "pooler_output", embeddings).float()
        return torch.nn.functional.normalize(embeddings, dim=-1).cpu().numpy()


def load_head(path: str) -> tuple[Float32[np.ndarray, " d"], float]:
    """Reads weight and bias of a head: a file of `aesthetics-train`, or one of LAION's.

    LAION's larger head consists of linear layers without activations, which fold into one.

    Raises:
      ValueError: if the file cannot be read or contains anything else.
    """
    try:
        if Path(path).suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        names = sorted(
            (name for name in tensors if name.endswith("weight")),
            key=lambda name: [int(part) for part in name.split(".") if part.isdigit()],
        )
        layers = [(tensors[name], tensors[f"{name.removesuffix('weight')}bias"]) for name in names]
        if 2 * len(layers) != len(tensors):
            raise KeyError("it contains tensors other than weights and biases")
        weight, bias = torch.eye(layers[0][0].shape[1], dtype=torch.float64), torch.zeros(1)
        for matrix, offset in layers:
            bias = matrix.double() @ bias.double().expand(matrix.shape[1]) + offset.double()
            weight = matrix.double() @ weight
        if weight.shape[0] != 1:
            raise KeyError(f"it gives {weight.shape[0]} scores instead of one")
    except (
        *(OSError, EOFError, LookupError, RuntimeError, AttributeError, TypeError, ValueError),
        *(pickle.UnpicklingError, SafetensorError),
    ) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is not an aesthetic head: {reason}") from error
    return weight[0].float().numpy(), float(bias[0])


class Scorer:
    """Scores clips with an encoder and a head.

    Raises:
      ValueError: if encoder or head cannot be loaded, or do not fit each other.
    """

    def __init__(self, encoder: str, head: str):
        self._weight, self._bias = load_head(head)
        self._encoder, self._names = Encoder(encoder), (encoder, head)

    def __call__(self, pictures: UInt8[np.ndarray, "t h w 3"]) -> float:
        """The mean score of the frames."""
        embeddings = self._encoder(list(pictures))
        if embeddings.shape[1] != len(self._weight):
            encoder, head = self._names
            raise ValueError(
                f"{head} takes embeddings of {len(self._weight)} values, "
                f"{encoder} gives {embeddings.shape[1]}"
            )
        return float((embeddings @ self._weight).mean() + self._bias)


def read_pairs(path: str) -> tuple[list[tuple[str, str]], int]:
    """Reads pairs of pictures from a CSV file.

    Args:
      path: CSV file with the columns better and worse, paths relative to it. If it also has the
        columns better_labels and worse_labels (words separated by spaces), pairs without a common
        label are left out.

    Returns:
      Pairs (better, worse), and the number of pairs that were left out.

    Raises:
      ValueError: if the table cannot be read or has fewer than two usable pairs.
    """
    folder, pairs, num_skipped = Path(path).parent, [], 0
    try:
        for row in csv.DictReader(io.StringIO(inputs.read_text(path))):
            labels = [set((row.get(f"{x}_labels") or "").split()) for x in ("better", "worse")]
            if any(labels) and not labels[0] & labels[1]:
                num_skipped += 1
            else:
                pairs.append((str(folder / row["better"]), str(folder / row["worse"])))
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} must have the columns better and worse in every row") from error
    if len(pairs) < 2:
        raise ValueError(f"{path} has {len(pairs)} pairs that share a label: too few to train on")
    return pairs, num_skipped


def fit(
    better: Float[np.ndarray, "n d"], worse: Float[np.ndarray, "n d"], decay: float
) -> Float[np.ndarray, " d"]:
    """Fits the weight of the head: minimises mean softplus(-(s_better - s_worse)).

    Args:
      better: embeddings of the preferred pictures.
      worse: embeddings of the other pictures of the pairs.
      decay: factor of the weight's squared length in the loss.
    """
    difference = (better - worse).astype(np.float64)

    def loss(weight: np.ndarray) -> tuple[float, np.ndarray]:
        margins = difference @ weight
        value = np.logaddexp(0, -margins).mean() + decay * weight @ weight
        gradient = -difference.T @ (1 / (1 + np.exp(np.clip(margins, -50, 50)))) / len(difference)
        return float(value), gradient + 2 * decay * weight

    return minimize(loss, np.zeros(difference.shape[1]), jac=True, method="L-BFGS-B").x


def train(
    pairs: Sequence[tuple[str, str]],
    encoder: Encoder,
    *,
    decay: float = 1e-4,
    held_out: float = 0.2,
) -> tuple[Float32[np.ndarray, " d"], float, float]:
    """Trains a head on pairs of picture files.

    Args:
      pairs: paths (better, worse).
      encoder: the frozen image encoder.
      decay: factor of the weight's squared length in the loss.
      held_out: fraction of the pairs that is used for the accuracy only; the last ones.

    Returns:
      Its weight, its bias, which makes the mean score 0, and its accuracy on the held-out pairs.

    Raises:
      ValueError: if a picture cannot be read.
    """
    files = sorted({name for pair in pairs for name in pair})
    batches = []
    for first in range(0, len(files), _BATCH):
        chunk = [video.read_media(name, num_frames=1)[0] for name in files[first : first + _BATCH]]
        batches.append(encoder(chunk))
    embeddings = dict(zip(files, np.concatenate(batches), strict=True))
    better = np.stack([embeddings[one] for one, _ in pairs])
    worse = np.stack([embeddings[other] for _, other in pairs])
    num_train = len(pairs) - max(round(held_out * len(pairs)), 1)
    weight = fit(better[:num_train], worse[:num_train], decay)
    accuracy = float(((better - worse)[num_train:] @ weight > 0).mean())
    bias = -float(np.mean([value @ weight for value in embeddings.values()]))
    return weight.astype(np.float32), bias, accuracy


def main(arguments: Sequence[str]) -> None:
    """The command `aesthetics-train PAIRS.csv --encoder NAME --output FILE`: trains a head."""
    parser = argparse.ArgumentParser(
        prog=f"{cli.program_name('prepare')} aesthetics-train",
        description="Trains an aesthetic head on pairs.",
    )
    parser.add_argument("pairs", help="CSV: better, worse, and better_labels, worse_labels")
    parser.add_argument("--encoder", required=True, help="CLIP or SigLIP, by name or folder")
    parser.add_argument("--output", required=True, help="a file that ends in .safetensors")
    parser.add_argument(
        "--decay",
        type=float,
        default=1e-4,
        help="factor of the weight's squared length in the loss",
    )
    args = parser.parse_args(arguments)
    if Path(args.output).suffix != ".safetensors":
        raise ValueError(f"{args.output} must end in .safetensors")
    pairs, num_skipped = read_pairs(args.pairs)
    weight, bias, accuracy = train(pairs, Encoder(args.encoder), decay=args.decay)
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    tensors = {"weight": torch.from_numpy(weight[None]), "bias": torch.tensor([bias])}
    save_file(tensors, args.output, {"encoder": args.encoder})
    print(f"{len(pairs)} pairs, {num_skipped} left out as they have no label in common")
    print(f"{args.output}: orders {100 * accuracy:.1f} % of the held-out pairs correctly")
