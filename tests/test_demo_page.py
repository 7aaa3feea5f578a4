"""The web page in a real browser: Chromium without a screen."""

import os
import re
import shutil
import socket
import urllib.error
import urllib.request

import numpy as np
import pytest
from tiny_checkpoint import SETTINGS, write_exported

from ltx_jax import sample
from ltx_jax.checkpoints import embedded_models, vocabulary_file
from ltx_jax.data import inputs, video, writing
from ltx_jax.world.vocabulary import vocabulary

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium (apt: chromium)"),
]
PATIENCE = 120_000  # milliseconds; what compiles on a busy machine takes its time
# Resolves once the page has not changed for half a second, or after three: a video plays on.
STILL = """() => new Promise(resolve => {
  let timer;
  const wait = () => { clearTimeout(timer); timer = setTimeout(done, 500); };
  const observer = new MutationObserver(wait);
  const done = () => { observer.disconnect(); resolve(); };
  observer.observe(
    document, {subtree: true, childList: true, attributes: true, characterData: true});
  wait();
  setTimeout(done, 3000);
})"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo_page")


@pytest.fixture(scope="module")
def address(folder):
    """Serves the page with a tiny model instead of the one that ships; gives its address."""
    gradio = pytest.importorskip("gradio", reason="the demo extra is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "served"))
        (folder / "served").mkdir()
        patch.setattr(embedded_models, "FOLDERS", folder / "models")
        model = write_exported(folder / "models" / embedded_models.DEFAULT)
        vocabulary_file.write(model / vocabulary_file.NAME, vocabulary())
        # It gives up after three seconds, which a busy machine may take.
        patch.setattr(gradio.networking, "url_ok", lambda url: True)
        from ltx_jax.demo import page
        from ltx_jax.demo.studio import Studio

        write_adapter(folder)
        settings = sample.parse(["--dtype", "float32"])
        studio = Studio(settings, folder / "served", loras=folder / "adapters")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        served = page.launch(studio, "127.0.0.1", port)
        yield served.local_url
        served.close()


def write_adapter(folder):
    """Writes an adapter of all layers of the model, whose file name becomes its name."""
    from test_adapter_files import random_changes

    from ltx_jax.checkpoints import adapter_writing
    from ltx_jax.checkpoints.load import load_checkpoint

    changes = random_changes(load_checkpoint("embedded").transformer)
    adapter_writing.write(folder / "adapters/style.safetensors", changes)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        # Root, as in most containers, has no sandbox.
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, 1000)], ids=["desktop"])
def page(browser, address, request):
    """The opened page; `requests` collects the URLs that it loads, `errors` its error messages."""
    width, height = request.param
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(PATIENCE)
    page.requests, page.problems = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#make")
    page.evaluate(STILL)
    yield page
    assert not page.problems
    page.close()


def make(page):
    """Presses the button; returns the frames of the video and their rate."""
    page.evaluate("document.querySelectorAll('#video video').forEach(old => old.remove())")
    page.click("#make")
    player = page.wait_for_selector("#video video")
    source = player.get_attribute("src")
    with urllib.request.urlopen(source) as answer:
        return video.read_video(inputs.Stored("answer.mp4", answer.read()))


def fill(page, name, value):
    """Types a number beside a slider, and waits until the slider has moved."""
    field = page.locator(f"#{name} input[type=number]")
    field.fill(str(value))
    field.press("Tab")
    slider = page.locator(f"#{name} input[type=range]")
    expect(slider).to_have_value(str(value))


def fill_prompt(page, text):
    page.fill("#prompt textarea", text)


def choose(words, name):
    """Clicks the word, since its radio button is not drawn."""
    words.get_by_text(name, exact=True).locator("visible=true").click()


def expect(locator):
    """Waits until an expectation is met."""
    from playwright import sync_api  # takes a second, and is not installed everywhere

    sync_api.expect.set_options(timeout=PATIENCE)
    return sync_api.expect(locator)


def open_part(page, title):
    """Opens an accordion and waits: while Gradio builds it, typed values would be reset."""
    page.get_by_role("button", name=title).click()
    page.evaluate(STILL)


def test_a_prompt_becomes_a_video_that_plays(page):
    page.fill("#prompt textarea", "a small red star moves left")
    frames, rate = make(page)
    assert frames.shape == (SETTINGS.num_frames, SETTINGS.height, SETTINGS.width, 3)
    assert rate == SETTINGS.frame_rate
    page.wait_for_function("document.querySelector('#video video').readyState >= 2")
    details = page.inner_text("#details")
    seed = re.match(r"9 frames of 64 x 32, 8 a second\. Seed (\d+)\.", details)
    open_part(page, "Settings")
    assert page.input_value("#seed input") == seed[1]
    open_part(page, "The same on the command line")
    assert f"--seed {seed[1]}" in page.locator(".cm-content").inner_text().replace("\n", " ")
    assert all(url.startswith(("http://127.0.0.1", "data:", "blob:")) for url in page.requests)


def test_each_step_is_shown_while_it_runs(page):
    open_part(page, "Settings")
    fill(page, "num_inference_steps", 40)
    # An observer records every change, as polling a busy browser may miss a step.
    page.evaluate(
        """() => {
          const place = document.querySelector('#video');
          window.seen = [];
          new MutationObserver(() => window.seen.push(place.innerText)).observe(
            place, {childList: true, subtree: true, characterData: true});
        }"""
    )
    page.click("#make")
    page.wait_for_selector("#video video")
    assert any(re.search(r"\d+.40 steps", text) for text in page.evaluate("window.seen"))


def test_pictures_are_taken(page, folder):
    white = np.full((32, 64, 3), 255, np.uint8)
    writing.write_image(folder / "white.png", white)
    open_part(page, "Settings")
    page.get_by_label("A new seed every time").uncheck()
    plain, _ = make(page)
    open_part(page, "Pictures")
    page.set_input_files("#later input[type=file]", folder / "white.png")
    page.wait_for_selector("#later img")
    fill(page, "frame", 4)
    with_picture, _ = make(page)
    assert np.abs(plain.astype(int) - with_picture).mean() > 1


def test_a_clip_is_followed(page, folder):
    frames = np.random.default_rng(0).integers(0, 255, (9, 32, 64, 3), np.uint8)
    writing.write_video(folder / "followed.mp4", frames, SETTINGS.frame_rate)
    open_part(page, "Settings")
    page.get_by_label("A new seed every time").uncheck()
    plain, _ = make(page)
    open_part(page, "A clip that the video has to follow")
    page.set_input_files("#clip input[type=file]", folder / "followed.mp4")
    page.wait_for_selector("#clip video")
    whole, _ = make(page)
    page.get_by_label("Its edges").check()
    edges, _ = make(page)
    for one, other in ((plain, whole), (whole, edges)):
        assert np.abs(one.astype(int) - other).mean() > 0.5
    open_part(page, "The same on the command line")
    command = page.locator(".cm-content").inner_text().replace("\n", " ")
    assert "--reference_media_path followed.mp4 --reference_preprocessor canny" in command
    assert all(url.startswith(("http://127.0.0.1", "data:", "blob:")) for url in page.requests)


def test_an_adapter_is_chosen_with_its_strength(page, folder):
    open_part(page, "Settings")
    page.get_by_label("A new seed every time").uncheck()
    plain, _ = make(page)
    page.click("#lora input")
    page.get_by_role("option", name="style").click()
    fill(page, "strength", 0.5)
    half, _ = make(page)
    fill(page, "strength", 1)
    whole, _ = make(page)
    for one, other in ((plain, half), (half, whole)):
        assert np.abs(one.astype(int) - other).mean() > 0.5
    open_part(page, "The same on the command line")
    command = page.locator(".cm-content").inner_text().replace("\n", " ")
    assert f"--lora {folder / 'adapters/style.safetensors'}:1" in command
    page.click("#lora input")
    page.get_by_role("option", name="No adapter").click()
    again, _ = make(page)
    np.testing.assert_array_equal(again, plain)


def test_a_mistake_is_a_message(page):
    open_part(page, "Settings")
    for name, value in (("width", 128), ("height", 64), ("num_frames", 17)):
        fill(page, name, value)
    page.click("#make")
    text = page.wait_for_selector(".toast-body").inner_text()
    assert "1.9 times what one video may be here: lower the size" in text


def test_words_out_of_its_world_are_named_and_sampled(page):
    fill_prompt(page, "a crimson dog moves left")
    unknown = page.locator("#unknown")
    expect(unknown).to_contain_text("does not know “crimson” and “dog”. Nearest:")
    make(page)
    page.get_by_text("crimson → red").click()
    expect(page.locator("#prompt textarea")).to_have_value("a red dog moves left")
    expect(unknown).to_contain_text("does not know “dog”.")
    fill_prompt(page, "a red star moves left")
    expect(unknown).to_be_hidden()


def test_phrases_are_chosen_in_tabs_by_group_or_found(page):
    prompt = page.locator("#prompt textarea")
    expect(prompt).to_have_value("a small red star moves left")
    words = page.locator("#words")
    choose(words, "ring")
    expect(prompt).to_have_value("a small red ring moves left")
    words.get_by_role("tab", name="background").click()
    choose(words, "cloudy")  # a group
    choose(words, "on a slate cloudy background")
    expect(prompt).to_have_value("a small red ring moves left on a slate cloudy background")
    words.locator(".find input, .find textarea").locator("visible=true").fill("brown str")
    choose(words, "on a brown striped background")
    expect(prompt).to_have_value("a small red ring moves left on a brown striped background")
    words.get_by_role("tab", name="size").click()
    expect(words.get_by_label("small", exact=True)).to_be_checked()
    choose(words, "no size")
    expect(prompt).to_have_value("a red ring moves left on a brown striped background")
    # What is written by hand is chosen in the tabs too.
    fill_prompt(page, "an orange cross grows")
    words.get_by_role("tab", name="motion").click()
    choose(words, "in place")
    expect(words.get_by_label("grows")).to_be_checked()
    words.get_by_role("tab", name="colour").click()
    expect(words.get_by_label("orange")).to_be_checked()


@pytest.mark.parametrize("page", [(390, 844)], ids=["phone"], indirect=True)
def test_a_phone_shows_the_video_below_the_button_and_nothing_beside_the_screen(page):
    fill_prompt(page, "a dog, a cat and a crimson wombat in moonlight move left")
    expect(page.locator("#unknown")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    tops = [page.locator(name).bounding_box()["y"] for name in ("#make", "#video", "#words")]
    assert tops == sorted(tops)


@pytest.mark.parametrize("path", ["/etc/hostname", __file__, "../models/shapes/model.safetensors"])
def test_no_file_but_its_own_is_served(address, folder, path):
    path = str((folder / "served" / path).resolve())
    assert os.path.exists(path)
    for route in ("gradio_api/file=", "file="):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}{route}{path}")
        assert refused.value.code in (403, 404)


def test_it_listens_to_this_machine_alone(address):
    port = int(re.findall(r":(\d+)/", address)[0])
    socket.create_connection(("127.0.0.1", port)).close()
    with pytest.raises(ConnectionRefusedError):  # this machine too, by another of its addresses
        socket.create_connection(("127.0.0.2", port))
