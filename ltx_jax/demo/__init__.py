"""A web page that samples videos: python -m ltx_jax.demo (see `__main__`).

- `page`: the page itself, built with Gradio.
- `studio`: checks a request against limits, samples it and writes the video; knows no Gradio.
"""
