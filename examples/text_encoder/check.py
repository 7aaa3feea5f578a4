"""The encoder of the example makes the same embeddings as transformers, and writes its files.

Usage: check.py FOLDER. The folder becomes a small Llama with random weights and a tokenizer.
"""

import sys

import numpy as np
import tokenizers
import torch
import transformers

from ltx_jax import TextEncoder

folder = sys.argv[1]
captions = ["a red circle moves left", "a small blue star", ""]
torch.manual_seed(0)
sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2)
heads = dict(num_attention_heads=4, num_key_value_heads=2)
theirs = transformers.LlamaModel(transformers.LlamaConfig(vocab_size=400, **sizes, **heads)).eval()
theirs.save_pretrained(folder)
tokenizer = tokenizers.ByteLevelBPETokenizer()
tokenizer.train_from_iterator(captions * 10, vocab_size=400, special_tokens=["<s>", "</s>"])
start = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
tokenizer._tokenizer.post_processor = start
fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, pad_token="</s>")
fast.save_pretrained(folder)

ours = TextEncoder.load(folder, dtype="float32", max_tokens=12)
embeddings, mask = map(np.asarray, ours.encode(captions))
inputs = fast(captions, padding="max_length", max_length=12, truncation=True, return_tensors="pt")
np.testing.assert_array_equal(mask, inputs.attention_mask)
with torch.no_grad():
    output = theirs(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask)
error = np.abs(embeddings - output.last_hidden_state.numpy())[mask == 1].max()
print(f"the largest difference from transformers is {error:.1e}")
assert error < 1e-5

ours.save(f"{folder}/again")
again = transformers.LlamaModel.from_pretrained(f"{folder}/again/text_encoder").state_dict()
for name, tensor in theirs.state_dict().items():
    assert torch.equal(tensor, again[name]), name
