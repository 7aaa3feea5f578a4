"""Rewrites prompts in more detail with a text-generation model of `transformers` (needs torch)."""

from pathlib import Path
from typing import Any

import torch
import transformers

# What the released models saw in training: long captions that begin with the action. The advice is
# that of the documentation of LTX-Video on prompts.
_INSTRUCTION = """You write the captions of videos. The user gives a short idea. Answer with one \
paragraph of at most 120 words that describes the video which shows it, and with nothing else. \
Begin with the main action. Then tell in the order of time how people, animals and things look and \
move, and say what the place, the light and the camera are like. Keep everything that the user \
says. Name only what can be seen."""
_MAX_TOKENS = 256


class PromptEnhancer:
    """Rewrites prompts by greedy decoding: the same prompt always gives the same text."""

    def __init__(self, name: str):
        """Loads a model onto the GPU if there is one, else onto the CPU.

        Args:
          name: a folder, or a name on the Hugging Face Hub, of any causal language model.

        Raises:
          ValueError: if it cannot be loaded.
        """
        self._name = name
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(name)
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(name, dtype="auto")
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            what = "folder" if Path(name).exists() else "model"
            raise ValueError(
                f"--enhance: the {what} {name} cannot be loaded as a text-generation model of "
                f"transformers: {reason}"
            ) from error
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = model.eval().to(self._device)

    def __call__(self, prompt: str) -> str:
        """The prompt in more detail, on one line.

        Raises:
          ValueError: if the model answers with nothing.
        """
        inputs = self._tokenizer(
            self._request(prompt),
            return_tensors="pt",
            # A chat template writes the special tokens itself.
            add_special_tokens=self._tokenizer.chat_template is None,
            return_token_type_ids=False,
        ).to(self._device)
        ending = self._tokenizer.pad_token_id
        with torch.inference_mode():
            tokens = self._model.generate(
                **inputs,
                max_new_tokens=_MAX_TOKENS,
                do_sample=False,
                pad_token_id=self._tokenizer.eos_token_id if ending is None else ending,
            )
        answer = tokens[0, inputs["input_ids"].shape[1] :]
        text = _paragraph(self._tokenizer.decode(answer, skip_special_tokens=True))
        if not text:
            raise ValueError(
                f"--enhance: {self._name} answered {prompt!r} with nothing: take another model, or "
                "leave --enhance out"
            )
        return text

    def _request(self, prompt: str) -> str:
        """The text that the model continues."""
        idea = f"{_INSTRUCTION}\n\nIdea: {prompt}"
        if self._tokenizer.chat_template is None:
            return f"{idea}\n\nCaption:"
        return self._tokenizer.apply_chat_template(
            [{"role": "user", "content": idea}],  # not all templates take a system message
            add_generation_prompt=True,
            tokenize=False,
            enable_thinking=False,  # read by the templates of models that reason first
        )


def _paragraph(answer: str) -> str:
    """The first paragraph of an answer, on one line, without the reasoning before it."""
    lines = answer.rpartition("</think>")[2].strip().splitlines()
    return " ".join(next(iter(lines), "").split())
