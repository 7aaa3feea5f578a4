"""Writes captions of clips with an image-text-to-text model of `transformers`."""

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from ltx_jax.config.preparation import CaptionsConfig
from ltx_jax.prepare import pretrained


class Captioner:
    """Writes captions by greedy decoding: the same frames always give the same caption.

    Raises:
      ValueError: if the model cannot be loaded.
    """

    def __init__(self, cfg: CaptionsConfig):
        self._cfg = cfg
        self._processor, self._model, self._device = pretrained.load(
            "captioner", cfg.model, "AutoProcessor", "AutoModelForImageTextToText"
        )

    def __call__(self, pictures: UInt8[np.ndarray, "t h w 3"]) -> str:
        """Writes a caption of the frames, on one line."""
        images = [Image.fromarray(picture) for picture in pictures]
        content = [{"type": "image"} for _ in images]
        content.append({"type": "text", "text": self._cfg.prompt})
        prompt = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        inputs = self._processor(text=[prompt], images=[images], return_tensors="pt")
        inputs = inputs.to(self._device, self._model.dtype)
        with torch.inference_mode():
            tokens = self._model.generate(
                **inputs, max_new_tokens=self._cfg.max_tokens, do_sample=False
            )
        answer = tokens[:, inputs["input_ids"].shape[1] :]
        [text] = self._processor.batch_decode(answer, skip_special_tokens=True)
        return " ".join(text.split())
