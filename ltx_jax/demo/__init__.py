"""A web page that samples videos: python -m ltx_jax.demo (see `__main__`).

- `guard`: refuses requests that the page itself does not make; knows no Gradio.
- `page`: the page itself, built with Gradio.
- `studio`: checks a request against limits, samples it and writes the video; knows no Gradio.
"""
