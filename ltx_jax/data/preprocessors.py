"""Makes references of clips: edges by OpenCV, depth by a model of `transformers`.

An adapter that follows references (an IC-LoRA) is trained on one kind of them. In sampling, the
reference is drawn from a clip by the method of its training data.
"""

import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

CANNY = "canny"
DEPTH = "depth:"  # and a model's name
_CANNY_THRESHOLDS = 100, 200  # of LTX-Video-Trainer's compute_condition.py

Preprocessor = Callable[[UInt8[np.ndarray, "t h w 3"]], UInt8[np.ndarray, "t h w 3"]]


@functools.lru_cache(1)
def preprocessor(name: str) -> Preprocessor:
    """The function from a clip to a reference of the same size.

    Args:
      name: "canny" for edges, white on black; "depth:MODEL" for the depth that a model of
        `transformers` estimates (a folder, or a name on the Hugging Face Hub), near parts white.

    Raises:
      ValueError: for another name, a model that cannot be loaded, or a package that is missing.
    """
    if name == CANNY:
        _check_opencv()
        return canny
    if name.startswith(DEPTH) and name != DEPTH:
        return Depth(name.removeprefix(DEPTH))
    raise ValueError(
        f"there is no preprocessor {name!r}: take {CANNY} or {DEPTH}MODEL, or make the reference "
        "with another program"
    )


def canny(frames: UInt8[np.ndarray, "t h w 3"]) -> UInt8[np.ndarray, "t h w 3"]:
    """Edges by Canny's method, white on black, with the thresholds of LTX-Video-Trainer."""
    import cv2

    greys = (cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames)
    edges = np.stack([cv2.Canny(grey, *_CANNY_THRESHOLDS) for grey in greys])
    return np.repeat(edges[..., None], 3, axis=-1)


def _check_opencv() -> None:
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "edges need OpenCV: pip install 'ltx-jax[prepare]', or opencv-python-headless"
        ) from error


class Depth:
    """Depth by a model of `transformers`, with one scale of grey for all frames of a clip.

    Args:
      model: a folder, or a name on the Hugging Face Hub.

    Raises:
      ValueError: if the model cannot be loaded, or torch is missing.
    """

    def __init__(self, model: str):
        try:
            import torch
            import transformers
        except ImportError as error:
            raise ValueError(
                f"depth by {model} needs PyTorch: pip install 'ltx-jax[prepare]'"
            ) from error
        try:
            self._processor = transformers.AutoImageProcessor.from_pretrained(model)
            network = transformers.AutoModelForDepthEstimation.from_pretrained(model)
        except (OSError, ValueError, KeyError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"the depth model {model} cannot be loaded: {reason[:200]}") from error
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._network = network.eval().to(self._device)

    def __call__(self, frames: UInt8[np.ndarray, "t h w 3"]) -> UInt8[np.ndarray, "t h w 3"]:
        """The depth of every frame, from 0 (far) to 255 (near)."""
        depths = np.stack([self._of_frame(frame) for frame in frames])
        low, high = depths.min(), depths.max()
        levels = np.rint((depths - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
        return np.repeat(levels[..., None], 3, axis=-1)

    def _of_frame(self, frame: UInt8[np.ndarray, "h w 3"]) -> np.ndarray:
        import torch

        height, width = frame.shape[:2]
        inputs = self._processor(images=Image.fromarray(frame), return_tensors="pt")
        with torch.inference_mode():
            outputs = self._network(**inputs.to(self._device))
        [depth] = self._processor.post_process_depth_estimation(
            outputs, target_sizes=[(height, width)]
        )
        return depth["predicted_depth"].float().cpu().numpy()
