"""Aesthetic scores: a ranking head on a frozen image encoder of `transformers`.

Trained on pairs of pictures of which people liked one better (Bradley and Terry: the probability of
that is the logistic function of the difference of scores). Pairs share a label, so that the score
learns what makes a picture good, and not which subjects are liked. LAION's heads load as well.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize

from ltx_jax.data import video
from ltx_jax.prepare import pretrained

_BATCH = 32


class Encoder:
    """An image encoder: CLIP, SigLIP, or another with `get_image_features`.

    Raises:
      ValueError: if there is no such model.
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
        """Embeddings of length 1."""
        inputs = self._processor(images=list(pictures), return_tensors="pt")
        inputs = inputs.to(self._device, self._model.dtype)
        with torch.inference_mode():
            found = self._model.get_image_features(**inputs)
        found = getattr(found, "pooler_output", found).float()
        return torch.nn.functional.normalize(found, dim=-1).cpu().numpy()


def load_head(path: str) -> tuple[Float32[np.ndarray, " d"], float]:
    """Weight and bias of a file of ours, or of one of LAION's.

    LAION's larger head is several linear layers with nothing between them: one linear layer.

    Raises:
      ValueError: if it cannot be read, or holds anything else.
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
            raise KeyError("other tensors than weights and biases")
        weight, bias = torch.eye(layers[0][0].shape[1], dtype=torch.float64), torch.zeros(1)
        for matrix, offset in layers:
            bias = matrix.double() @ bias.double().expand(matrix.shape[1]) + offset.double()
            weight = matrix.double() @ weight
        if weight.shape[0] != 1:
            raise KeyError(f"{weight.shape[0]} scores in place of one")
    except (OSError, KeyError, IndexError, RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is no aesthetic head: {error}") from error
    return weight[0].float().numpy(), float(bias[0])


class Scorer:
    """Scores of clips.

    Raises:
      ValueError: if encoder or head cannot be loaded, or do not fit each other.
    """

    def __init__(self, encoder: str, head: str):
        self._weight, self._bias = load_head(head)
        self._encoder, self._names = Encoder(encoder), (encoder, head)

    def __call__(self, pictures: UInt8[np.ndarray, "t h w 3"]) -> float:
        """The mean score of pictures."""
        found = self._encoder(list(pictures))
        if found.shape[1] != len(self._weight):
            encoder, head = self._names
            raise ValueError(
                f"{head} takes embeddings of {len(self._weight)}, {encoder} gives {found.shape[1]}"
            )
        return float((found @ self._weight).mean() + self._bias)


def read_pairs(path: str) -> tuple[list[tuple[str, str]], int]:
    """Pairs (better, worse) of a table, and how many were left out as they share no label.

    Args:
      path: CSV with the columns better and worse, files beside it; where there are also
        better_labels and worse_labels, words apart by spaces, a pair must have one in common.

    Raises:
      ValueError: if the table cannot be used.
    """
    folder, pairs, left_out = Path(path).parent, [], 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                labels = [set((row.get(f"{x}_labels") or "").split()) for x in ("better", "worse")]
                if any(labels) and not labels[0] & labels[1]:
                    left_out += 1
                else:
                    pairs.append((str(folder / row["better"]), str(folder / row["worse"])))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} must have the columns better and worse in every row") from error
    if len(pairs) < 2:
        raise ValueError(f"{path} has {len(pairs)} pairs that share a label: too few to train on")
    return pairs, left_out


def fit(
    better: Float[np.ndarray, "n d"], worse: Float[np.ndarray, "n d"], decay: float
) -> Float[np.ndarray, " d"]:
    """The weight that orders pairs best: minimises mean softplus(-(s_better - s_worse)).

    Args:
      better: embeddings, and
      worse: those of the other pictures.
      decay: of the weight's squared length.
    """
    apart = (better - worse).astype(np.float64)

    def loss(weight: np.ndarray) -> tuple[float, np.ndarray]:
        margins = apart @ weight
        value = np.logaddexp(0, -margins).mean() + decay * weight @ weight
        slope = -apart.T @ (1 / (1 + np.exp(np.clip(margins, -50, 50)))) / len(apart)
        return float(value), slope + 2 * decay * weight

    return minimize(loss, np.zeros(apart.shape[1]), jac=True, method="L-BFGS-B").x


def train(
    pairs: Sequence[tuple[str, str]],
    encoder: Encoder,
    *,
    decay: float = 1e-4,
    held_out: float = 0.2,
) -> tuple[Float32[np.ndarray, " d"], float, float]:
    """Trains a head: its weight, its bias, and the share of held-out pairs that it orders rightly.

    The bias makes the mean score 0. The last pairs are held out.

    Raises:
      ValueError: if a picture cannot be read.
    """
    files = sorted({name for pair in pairs for name in pair})
    found = []
    for first in range(0, len(files), _BATCH):
        chunk = [video.read_media(name, num_frames=1)[0] for name in files[first : first + _BATCH]]
        found.append(encoder(chunk))
    embeddings = dict(zip(files, np.concatenate(found), strict=True))
    better = np.stack([embeddings[one] for one, _ in pairs])
    worse = np.stack([embeddings[other] for _, other in pairs])
    kept = len(pairs) - max(round(held_out * len(pairs)), 1)
    weight = fit(better[:kept], worse[:kept], decay)
    right = float(((better - worse)[kept:] @ weight > 0).mean())
    bias = -float(np.mean([value @ weight for value in embeddings.values()]))
    return weight.astype(np.float32), bias, right


def main(arguments: Sequence[str]) -> None:
    """Trains a head and writes it: `aesthetics-train PAIRS.csv --encoder NAME --output FILE`."""
    parser = argparse.ArgumentParser(
        prog="ltx_jax.prepare aesthetics-train", description="Trains an aesthetic head on pairs."
    )
    parser.add_argument("pairs", help="CSV: better, worse, and better_labels, worse_labels")
    parser.add_argument("--encoder", required=True, help="CLIP or SigLIP, by name or folder")
    parser.add_argument("--output", required=True, help="a file that ends in .safetensors")
    parser.add_argument("--decay", type=float, default=1e-4, help="of the weight's squared length")
    given = parser.parse_args(arguments)
    if Path(given.output).suffix != ".safetensors":
        raise ValueError(f"{given.output} must end in .safetensors")
    pairs, left_out = read_pairs(given.pairs)
    weight, bias, right = train(pairs, Encoder(given.encoder), decay=given.decay)
    Path(given.output).parent.mkdir(parents=True, exist_ok=True)
    tensors = {"weight": torch.from_numpy(weight[None]), "bias": torch.tensor([bias])}
    save_file(tensors, given.output, {"encoder": given.encoder})
    print(f"{len(pairs)} pairs, {left_out} left out for they share no label")
    print(f"{given.output}: orders {100 * right:.1f} % of the held-out pairs rightly")
