"""The web page: prompt, words, pictures and settings on the left, the video on the right."""

import base64
import dataclasses
import functools
import io
import math
import queue
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]  # the demo extra
import numpy as np
from gradio.themes import Soft  # pyright: ignore[reportMissingImports]
from jaxtyping import UInt8
from PIL import Image
from starlette.middleware import Middleware  # pyright: ignore[reportMissingImports]

from ltx_jax.demo import word_list
from ltx_jax.demo.guard import MAX_UPLOAD, Guard, Listeners
from ltx_jax.demo.studio import (
    MAX_PROMPT,
    PageImage,
    PageLora,
    PageReference,
    SampledVideo,
    Studio,
)
from ltx_jax.diffusion.sampler import Progress
from ltx_jax.vocabulary import Vocabulary

# System fonts only: the page loads nothing from other servers.
THEME = Soft(
    primary_hue="indigo",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
).set(
    block_title_background_fill="transparent",
    block_title_text_color="*neutral_600",
    block_title_padding="0",
    block_title_text_weight="500",
    block_label_background_fill="*neutral_50",
    block_label_text_color="*neutral_600",
)
CSS = """
.gradio-container { max-width: 1120px !important; margin: 0 auto !important; }
#video video { background: #0f172a; }
#layout { display: grid; grid-template-columns: minmax(0, 1fr); }
@media (min-width: 768px) {
  #layout { grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); grid-template-rows: auto 1fr; }
  #layout > :nth-child(2) { grid-column: 2; grid-row: 1 / span 2; }
}
@media (max-width: 767px) { #video { height: 320px !important; } }
#preview img { width: 100%; image-rendering: pixelated; }
"""
_MAX_QUEUE = 8  # requests that wait while another one is sampled
_MAX_SESSIONS = 256  # visitors whose fields Gradio keeps in memory
_PATIENCE = 10  # seconds in which a visitor has to ask for the progress of a request
# Uploaded pictures older than the second number are deleted every so often, in seconds.
_CLEANUP_INTERVAL, _UPLOAD_AGE = 600, 3600
NO_LORA = "No adapter"
WHOLE, EDGES = "The clip as it is", "Its edges"  # what of a reference clip the video follows


def launch(studio: Studio, host: str, port: int, names: Collection[str] = ()) -> gr.Blocks:
    """Serves the page in the background; call `block_thread` or `close` of the result.

    Only files in the studio's folder are served, which has to be Gradio's own (GRADIO_TEMP_DIR).

    Args:
      studio: makes the videos.
      host: the address that the page listens at.
      port: its port.
      names: host names under which the page is reached, as behind a proxy.

    Raises:
      OSError: if the port is taken.
    """
    listeners = Listeners()
    page = build(studio, listeners)
    page.queue(max_size=_MAX_QUEUE, default_concurrency_limit=1)
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        max_file_size=MAX_UPLOAD,
        state_session_capacity=_MAX_SESSIONS,
        app_kwargs={
            "middleware": [
                Middleware(Guard, folder=studio.folder, names=names, listeners=listeners)
            ]
        },
        theme=THEME,
        css=CSS + word_list.CSS,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    return page


def build(studio: Studio, listeners: Listeners) -> gr.Blocks:
    """Builds the page of a studio, ready to be launched; sampling ends if nobody listens."""
    with gr.Blocks(
        title="LTX-Video in JAX",
        analytics_enabled=False,
        delete_cache=(_CLEANUP_INTERVAL, _UPLOAD_AGE),
    ) as page:
        gr.Markdown(_heading(studio))
        # Three columns, of which the first and the last stand below each other where there is room
        # for two.
        with gr.Row(elem_id="layout"):
            with gr.Column(min_width=0):
                fields = {"prompt": _prompt(studio)}
                unknown = None
                if studio.vocabulary is not None:
                    unknown = word_list.unknown_words(studio.vocabulary, fields["prompt"])
                fields |= _extras(studio)
                button = gr.Button("Make the video", variant="primary", elem_id="make")
            with gr.Column(min_width=0):
                player, preview, details, command = _result()
            with gr.Column(min_width=0):
                if studio.vocabulary is not None and unknown is not None:
                    _known(studio.vocabulary, fields["prompt"], unknown)
                with gr.Accordion("Pictures that the video has to show", open=False):
                    fields |= _pictures(studio)
                with gr.Accordion("A clip that the video has to follow", open=False):
                    fields |= _clip()
                with gr.Accordion("Settings", open=False, elem_id="settings"):
                    sliders = _sliders(studio)
                    fields |= sliders | _seed(studio)
        gr.on(
            [button.click, fields["prompt"].submit],
            _handler(studio, listeners, fields, tuple(sliders)),
            set(fields.values()),
            [player, details, command, fields["seed"], preview],
            show_progress_on=player,
            api_visibility="private",
        )
        sliders["num_frames"].change(
            lambda frames: gr.Slider(maximum=max(frames - 1, 2), value=frames - 1),
            sliders["num_frames"],
            fields["frame"],
            show_progress="hidden",
            api_visibility="private",
        )
    return page


def _prompt(studio: Studio) -> gr.Textbox:
    known = studio.vocabulary
    first = next(iter(known.examples), "") if known is not None else ""
    return gr.Textbox(
        studio.settings.prompt or first,
        label="Prompt",
        placeholder="What the video shows",
        lines=2,
        max_length=MAX_PROMPT,
        elem_id="prompt",
    )


def _known(vocabulary: Vocabulary, prompt: gr.Textbox, unknown: word_list.UnknownWords) -> None:
    """What the model knows, to choose from, and prompts to try."""
    with gr.Accordion("What this model knows"):
        word_list.word_list(vocabulary, prompt, unknown)
    if vocabulary.examples:
        gr.Examples([[text] for text in vocabulary.examples], prompt, label="Try one of these")


def _result() -> tuple[gr.Video, gr.HTML, gr.Markdown, gr.Code]:
    """The video, the preview while it is made, how it was made, and the command that makes it."""
    player = gr.Video(
        label="Video",
        interactive=False,
        autoplay=True,
        loop=True,
        height=480,
        buttons=["download"],
        elem_id="video",
    )
    preview = gr.HTML(elem_id="preview")
    details = gr.Markdown(elem_id="details")
    with gr.Accordion("The same on the command line", open=False):
        command = gr.Code(
            language="shell",
            show_label=False,
            interactive=False,
            wrap_lines=True,
            show_line_numbers=False,
            lines=1,
        )
    return player, preview, details, command


def _seed(studio: Studio) -> dict[str, Any]:
    """Fields for the seed, and for another one every time."""
    with gr.Row():
        seed = gr.Number(
            studio.settings.seed,
            label="Seed",
            precision=0,
            minimum=0,
            maximum=2**32 - 1,
            elem_id="seed",
        )
        return {"seed": seed, "new_seed": gr.Checkbox(True, label="A new seed every time")}


def _handler(
    studio: Studio,
    listeners: Listeners,
    fields: dict[str, Any],
    numbers: tuple[str, ...],
) -> Any:
    """The button's function: values of the fields -> player, details, command, seed and preview,
    first with previews alone."""

    def handle(
        values: dict[Any, Any], request: gr.Request, progress: gr.Progress
    ) -> Iterator[tuple[Any, ...]]:
        inputs: dict[str, Any] = {name: values[field] for name, field in fields.items()}
        begin = time.monotonic()

        def check_listener(step: Progress) -> None:
            patient = time.monotonic() - begin < _PATIENCE
            if not patient and not listeners.waits(request.session_hash):
                raise ValueError("nobody waits for this video any more")

        try:
            prompt = inputs["prompt"] or ""
            changes: dict[str, Any] = {
                name: _number(studio, name, inputs[name]) for name in numbers
            }
            seed = None if inputs["new_seed"] else inputs["seed"]
            changes["seed"] = secrets.randbelow(2**32) if seed is None else int(seed)
            places = ((inputs["first"], 0), (inputs["later"], inputs["frame"]))
            pictures = [
                PageImage(studio.picture(path), int(frame))
                for path, frame in places
                if path is not None
            ]
            reference, path = None, inputs["clip"]
            if path is not None:
                reference = PageReference(studio.clip(path), inputs["clip_use"] == EDGES)
            progress(0.0, desc="Preparing; the first video of a size takes longer")
            name = inputs.get("lora") or NO_LORA
            lora = None if name == NO_LORA else PageLora(name, float(inputs["strength"]))
            extras: dict[str, Any] = {"lora": lora, "enhance": bool(inputs.get("enhance"))}
            extras["reference"] = reference
            make = functools.partial(studio.make, prompt, pictures, **extras, **changes)
            video = None
            for event in _events(make, check_listener):
                if isinstance(event, SampledVideo):
                    video = event
                elif isinstance(event, Progress):
                    what = "Denoising" if event.step < event.steps else "Decoding"
                    progress((event.step, event.steps), desc=what)
                else:
                    yield *[gr.skip()] * 4, _picture_element(event)
            assert video is not None  # as the last event
        except (ValueError, OSError, MemoryError) as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error
        settings = video.settings
        details = (
            f"{settings.num_frames} frames of {settings.width} x {settings.height}, "
            f"{settings.frame_rate:g} a second. Seed {settings.seed}. "
            f"Made in {video.seconds:.1f} s."
        )
        if extras["enhance"]:
            details += f"\n\nPrompt: {settings.prompt}"
        yield str(video.path), details, video.command, settings.seed, ""

    # Gradio has to see that this is a generator, and what a request is. Checks of types at run time
    # wrap functions, but no lambdas.
    stream: Any = lambda values, request, progress=gr.Progress(): (  # noqa: E731
        yield from handle(values, request, progress)
    )
    stream.__annotations__ = {"request": gr.Request}
    return stream


def _events(
    make: Callable[..., SampledVideo], check: Callable[[Progress], None]
) -> Iterator[SampledVideo | Progress | np.ndarray]:
    """Makes a video in a thread; yields the progress of every step, its preview (t, h, w, 3) if
    there are any, and at last the video.

    Args:
      make: `Studio.make` with all arguments but progress and preview.
      check: called in the thread after every step; an exception from it ends the work.

    Raises:
      Whatever `make` and `check` raise.
    """
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def after_step(step: Progress) -> None:
        check(step)
        events.put(dataclasses.replace(step, tokens=None, memory=None))

    def work() -> None:
        try:
            events.put(make(progress=after_step, preview=lambda _, x: events.put(x[0])))
        except BaseException as error:  # raised again where the events are read
            events.put(error)

    threading.Thread(target=work, daemon=True).start()
    while True:
        event = events.get()
        if isinstance(event, BaseException):
            raise event
        yield event
        if isinstance(event, SampledVideo):
            return


def _picture_element(pictures: UInt8[np.ndarray, "t h w 3"]) -> str:
    """Pictures side by side as an HTML element that needs no file."""
    file = io.BytesIO()
    Image.fromarray(np.concatenate(list(pictures), axis=1)).save(file, "PNG")
    content = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/png;base64,{content}" alt="The video so far">'


def _number(studio: Studio, name: str, value: float | int) -> float | int:
    """A slider's value, converted to the type of the setting with that name."""
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a number, got {value}")
    return int(value) if isinstance(getattr(studio.settings, name), int) else float(value)


def _extras(studio: Studio) -> dict[str, Any]:
    """Fields for an adapter, its strength, and the enhancement of the prompt, as far as the studio
    has them."""
    fields: dict[str, Any] = {}
    if studio.enhancer is not None:
        fields["enhance"] = gr.Checkbox(
            True, label="Describe it in more detail first", elem_id="enhance"
        )
    if studio.loras:
        with gr.Row():
            fields["lora"] = gr.Dropdown(
                [NO_LORA, *studio.loras], value=NO_LORA, label="Adapter", elem_id="lora"
            )
            fields["strength"] = gr.Slider(
                0, 2, 1, step=0.05, label="Strength of the adapter", elem_id="strength"
            )
    return fields


def _pictures(studio: Studio) -> dict[str, Any]:
    """Fields for a first frame, a later frame, and the number of the later frame."""
    last = studio.settings.num_frames - 1
    fields = {}
    with gr.Row():
        for name, label in (("first", "First frame"), ("later", "A later frame")):
            sources: Any = ["upload", "clipboard"]
            fields[name] = _upload(
                gr.Image(label=label, sources=sources, height=220, buttons=[], elem_id=name)
            )
    label = "Number of the later frame; the first is 0"
    fields["frame"] = gr.Slider(1, max(last, 2), last, step=1, label=label, elem_id="frame")
    return fields


def _clip() -> dict[str, Any]:
    """Fields for a reference clip, and for what of it the video follows."""
    return {
        "clip": _upload(
            gr.Video(label="Clip", sources=["upload"], height=220, buttons=[], elem_id="clip")
        ),
        "clip_use": gr.Radio([WHOLE, EDGES], value=WHOLE, label="Follow", elem_id="clip_use"),
    }


def _upload(field: Any) -> Any:
    """Makes the path that a request names the value of a field for a picture or a clip.

    Gradio would open any file and fetch any address that a client names; the studio reads uploads
    alone. (Gradio would write a .pyi file beside this one for a subclass.)
    """

    async def stay(url_or_file_path: Any) -> Any:
        return url_or_file_path  # uploads are in Gradio's folder already

    field.preprocess = lambda payload: None if payload is None else payload.path or ""
    field.async_move_resource_to_block_cache = stay
    return field


def _sliders(studio: Studio) -> dict[str, Any]:
    """Sliders named like their settings, without those whose values differ from step to step."""
    settings, limits = studio.settings, studio.limits
    side, length = studio.spatial_factor, studio.temporal_factor
    fields: dict[str, Any] = {}
    with gr.Row():
        for name, max_value in (("width", limits.width), ("height", limits.height)):
            value, label = getattr(settings, name), name.capitalize()
            fields[name] = gr.Slider(side, max_value, value, step=side, label=label, elem_id=name)
    with gr.Row():
        fields["num_frames"] = gr.Slider(
            1,
            limits.num_frames,
            settings.num_frames,
            step=length,
            label="Frames",
            elem_id="num_frames",
        )
        rate = settings.frame_rate
        fields["frame_rate"] = gr.Slider(1, 60, rate, step=1, label="Frame rate")
    with gr.Row():
        if settings.timesteps is None:
            count = settings.num_inference_steps
            fields["num_inference_steps"] = gr.Slider(
                1, limits.steps, count, step=1, label="Steps", elem_id="num_inference_steps"
            )
        if not isinstance(settings.guidance_scale, tuple):
            fields["guidance_scale"] = gr.Slider(
                1,
                10,
                settings.guidance_scale,
                step=0.1,
                label="Guidance",
            )
    return fields


def _heading(studio: Studio) -> str:
    known = studio.vocabulary
    about = f"Videos from `{studio.settings.checkpoint}`." if known is None else known.about
    return f"# LTX-Video in JAX\n{about}"
