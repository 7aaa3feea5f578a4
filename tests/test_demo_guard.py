"""Hostile requests to the web page: nothing is served but what the page made and was sent."""

import base64
import contextlib
import http.client
import json
import os
import socket
import threading
import time
import types
import urllib.request
import zlib
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from tiny_checkpoint import write_exported

from ltx_jax import sample
from ltx_jax.data import writing
from ltx_jax.demo import guard
from ltx_jax.demo.studio import Studio
from ltx_jax.diffusion.sampler import Progress
from ltx_jax.inference import make_videos

SECRET = b"the content of another file"
META = {"meta": {"_type": "gradio.FileData"}}
CLIP = np.zeros((1, 9, 32, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A page whose sampler records its conditions; folders, port, and the fields of a request."""
    gradio = pytest.importorskip("gradio", reason="the demo extra is not installed")
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "served").mkdir()
    (folder / "secret.txt").write_bytes(SECRET)
    writing.write_image(folder / "secret.png", np.full((8, 8, 3), 77, np.uint8))
    (folder / "served" / "link.png").symlink_to(folder / "secret.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "served"))
        patch.setattr(gradio.networking, "url_ok", lambda url: True)
        from ltx_jax.demo import page

        model = write_exported(folder / "model")
        arguments = ["--checkpoint", str(model), "--dtype", "float32"]
        studio = Studio(sample.parse(arguments), folder / "served")
        calls, steps = [], []

        def record(settings, models, prompts, *, conditions, callback, **more):
            calls.append(conditions)
            for step in steps:
                step(callback)
            return None, CLIP

        patch.setattr(make_videos, "sample_batch", record)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        demo = page.launch(studio, "127.0.0.1", port, ["demo.example"])
        yield types.SimpleNamespace(
            folder=folder,
            uploads=folder / "served",
            port=port,
            calls=calls,
            steps=steps,
            patch=patch,
            config=json.loads(demand(port, "GET", "/config")[1]),
        )
        demo.close()


def demand(port, method, path, headers=None, body=None):
    """The status and body of one raw request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = headers or {}
    connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    if body is not None and "Content-Length" not in headers and "Transfer-Encoding" not in headers:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders()
    if body is not None:
        # A server that refuses a body early closes the connection before all of it is sent.
        with contextlib.suppress(BrokenPipeError):
            connection.send(body)
    answer = connection.getresponse()
    try:
        return answer.status, answer.read()
    finally:
        connection.close()


def join(served, **fields):
    """Asks for a video with some fields changed; returns the session, or None if it is refused."""
    [(number, button)] = [
        (i, one)
        for i, one in enumerate(served.config["dependencies"])
        if any(target[1] == "click" for target in one["targets"]) and len(one["inputs"]) > 5
    ]
    props = {part["id"]: part["props"] for part in served.config["components"]}
    names = [props[i].get("elem_id") or props[i]["label"] for i in button["inputs"]]
    assert not fields.keys() - set(names), names
    data = [
        fields.get(name, props[i].get("value"))
        for i, name in zip(button["inputs"], names, strict=True)
    ]
    session = os.urandom(6).hex()
    body = {"data": data, "fn_index": number, "session_hash": session}
    status, text = demand(
        served.port,
        "POST",
        "/gradio_api/queue/join",
        {"Content-Type": "application/json"},
        json.dumps(body).encode(),
    )
    assert status in (200, 400, 422), text
    return session if status == 200 else None


def outcome(served, **fields):
    """Asks for a video; returns whether it was made, and all that the page said."""
    session = join(served, **fields)
    if session is None:
        return False, ""
    address = f"http://127.0.0.1:{served.port}/gradio_api/queue/data?session_hash={session}"
    said = b""
    with urllib.request.urlopen(address, timeout=60) as events:
        for line in events:
            said += line
            if b'"process_completed"' in line:
                message = json.loads(line.removeprefix(b"data: "))
                return message["success"], said.decode()
    return False, said.decode()


def upload(served, name, content, headers=None):
    """Uploads a file; returns its path on the server, or the status and text of the refusal."""
    form = (
        f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        + content
        + b"\r\n--b--\r\n"
    )
    status, text = demand(
        served.port,
        "POST",
        "/gradio_api/upload",
        {"Content-Type": "multipart/form-data; boundary=b", **(headers or {})},
        form,
    )
    return json.loads(text)[0] if status == 200 else (status, text)


def picture(served, name="picture.png", value=200):
    path = served.folder / name
    writing.write_image(path, np.full((8, 8, 3), value, np.uint8))
    return path.read_bytes()


def png(height, width):
    """A black PNG of any size in few bytes."""

    def chunk(kind, content):
        body = kind + content
        return len(content).to_bytes(4) + body + zlib.crc32(body).to_bytes(4)

    rows = zlib.compressobj(9)
    packed = b"".join(rows.compress(bytes(1 + width // 8)) for _ in range(height)) + rows.flush()
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([1, 0, 0, 0, 0])
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", packed), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_its_own_requests_are_answered(served):
    path = upload(served, "picture.png", picture(served))
    done, said = outcome(served, first={"path": path, **META})
    assert done, said
    assert served.calls[-1][0].media[0, 0, 0] == 200
    message = json.loads(said.splitlines()[-1].removeprefix("data: "))
    video = message["output"]["data"][0]
    status, content = demand(served.port, "GET", f"/gradio_api/file={video['path']}")
    assert (status, content[4:8]) == (200, b"ftyp")
    assert demand(served.port, "GET", "/", {"Host": f"localhost:{served.port}"})[0] == 200
    headers = {"Host": "demo.example", "Origin": "https://demo.example"}
    assert demand(served.port, "GET", "/config", headers)[0] == 200
    own = {"Origin": f"http://127.0.0.1:{served.port}", "Sec-Fetch-Site": "same-origin"}
    assert demand(served.port, "GET", "/config", own)[0] == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"}
    assert demand(served.port, "GET", "/", link)[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:7860"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "localhost.evil.example"},
        {"Host": "localhost@evil.example"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Origin": "http://127.0.0.1.evil.example"},
        {"Origin": "http://demo.example.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "iframe"},
    ],
    ids=str,
)
def test_other_sites_and_names_are_refused(served, headers):
    for method, path in (("POST", "/gradio_api/queue/join"), ("GET", "/"), ("GET", "/config")):
        body = b"{}" if method == "POST" else None
        status, text = demand(served.port, method, path, headers, body)
        assert status in (403, 421), (path, text)


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file={folder}/secret.txt",
        "/gradio_api/file={folder}/served/../secret.txt",
        "/gradio_api/file={folder}/served/%2e%2e/secret.txt",
        "/gradio_api/file={folder}/served/link.png",
        "/gradio_api/file=//{folder}/secret.txt",
        "/gradio_api/file=%00",
        "/gradio_api/file=/proc/self/environ",
        "/gradio_api/file=pyproject.toml",
        "/gradio_api/file={folder}/served",
        "/gradio_api/file={folder}/model/model.safetensors",
        "/gradio_api/file=http://127.0.0.1:{other}/",
        "/gradio_api/file/{folder}/secret.txt",
        "/file={folder}/secret.txt",
        "/gradio_api/proxy=http://127.0.0.1:{other}/",
        "/static/../../../../../../../..{folder}/secret.txt",
        "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e{folder}/secret.txt",
        "/assets/../../../../../../../..{folder}/secret.txt",
        "/svelte/..%2f..%2f..%2f..{folder}/secret.txt",
        "/gradio_api/custom_component/1/client/component/..{folder}/secret.txt",
        "/gradio_api/openapi.json",
        "/openapi.json",
        "/docs",
        "/monitoring",
        "/monitoring/summary",
        "/gradio_api/runs",
        "/gradio_api/deep_link",
        "/gradio_api/call/handle/x",
        "/gradio_api/stream/a/b/1/playlist.m3u8",
        "/gradio_api/vibe-code",
        "/gradio_api/dev/reload",
    ],
)
def test_no_other_address_is_served(served, path):
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        other.timeout = 0.2
        address = path.format(folder=served.folder, other=other.server_port)
        status, text = demand(served.port, "GET", address)
        other.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.socket.accept()
    assert status == 404
    assert SECRET not in text


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/gradio_api/run/predict", {}, 404),
        ("POST", "/gradio_api/call/handle", {}, 404),
        ("POST", "/gradio_api/component_server", {}, 404),
        ("POST", "/gradio_api/component_server/", {}, 404),
        ("POST", "/gradio_api/process_recording", {}, 404),
        ("POST", "/gradio_api/vibe-edit", {}, 404),
        ("POST", "/login", {}, 404),
        ("PUT", "/gradio_api/upload", {}, 404),
        ("DELETE", "/gradio_api/upload", {}, 404),
        ("TRACE", "/", {}, 404),
        ("POST", "/gradio_api/upload", {"Content-Length": "99999999"}, 413),
        ("POST", "/gradio_api/upload", {"Content-Length": "9" * 400}, (400, 413)),
        ("POST", "/gradio_api/upload", {"Content-Length": "-1"}, (400, 411)),
        ("POST", "/gradio_api/upload", {"Transfer-Encoding": "chunked"}, 411),
        ("POST", "/gradio_api/queue/join", {"Content-Length": "200000"}, 413),
    ],
)
def test_routes_and_lengths_that_it_does_not_use_are_refused(served, method, path, headers, status):
    answer, _ = demand(served.port, method, path, headers, b"" if headers else b"{}")
    assert answer in (status if isinstance(status, tuple) else (status,))


@pytest.mark.parametrize(
    "value",
    [
        {"path": "{folder}/secret.png"},
        {"path": "{folder}/secret.png", **META},
        {"path": "{folder}/served/../secret.png"},
        {"path": "{folder}/served/link.png"},
        {"path": "{folder}/served/link.png", **META},
        {"path": "{folder}/served", **META},
        {"path": "http://127.0.0.1:{other}/picture.png"},
        {"path": "http://127.0.0.1:{other}/picture.png", **META},
        {"path": "x", "url": "http://127.0.0.1:{other}/picture.png", **META},
        {"path": None, "url": "{data}"},
        {"path": "{folder}/secret.png", "url": "{data}"},
        {"path": "{data}", **META},
        {"path": "{folder}/secret.png", "orig_name": "x.svg"},
        {"path": "{folder}/secret.png", "is_stream": True, **META},
        {"path": "\0"},
        {"path": "/dev/zero"},
        {"path": "file://{folder}/secret.png"},
        {"path": ["{folder}/secret.png"]},
        "{folder}/secret.png",
        ["{folder}/secret.png"],
        {"meta": None, "path": "{folder}/secret.png"},
        {},
        7,
    ],
    ids=str,
)
@pytest.mark.parametrize("field", ["first", "clip"])
def test_files_that_were_not_uploaded_are_refused(served, field, value):
    data = "data:image/png;base64," + base64.b64encode(picture(served)).decode()
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        text = json.dumps(value).replace("{folder}", str(served.folder))
        text = text.replace("{other}", str(other.server_port)).replace("{data}", data)
        before = len(served.calls)
        done, said = outcome(served, **{field: json.loads(text)})
        other.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.socket.accept()
    assert not done, said
    assert len(served.calls) == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, x) for name in ("width", "Guidance", "Frame rate") for x in (float("nan"), "1")),
        ("width", float("inf")),
        ("width", 10**400),
        ("width", None),
        ("width", [64]),
        ("num_frames", float("nan")),
        ("num_inference_steps", float("nan")),
        ("Frame rate", float("-inf")),
        ("prompt", "x" * 3000),
    ],
    ids=str,
)
def test_values_that_are_no_settings_are_refused(served, field, value):
    before = len(served.calls)
    done, said = outcome(served, **{field: value})
    assert not done, said
    assert len(served.calls) == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bomb.png", png(8000, 8000), "bomb.png is too large: 64 megapixels"),
        ("bomb.png", png(40000, 40000), "too large: 1600 megapixels"),
        ("cut.png", png(64, 64)[:50], "damaged or unreadable image"),
        ("text.png", b"text", "is not an image"),
        ("image.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image"),
        ("image.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
        ("../../escaped.png", b"text", "is not an image"),
    ],
)
def test_uploads_that_are_no_pictures_are_refused(served, name, content, message):
    before = len(served.calls)
    path = upload(served, name, content)
    assert path.startswith(str(served.uploads))
    done, said = outcome(served, first={"path": path, **META})
    assert not done
    assert message in said
    assert len(served.calls) == before


def clip(served, height, width):
    path = served.folder / "clip.mp4"
    writing.write_video(path, np.zeros((2, height, width, 3), np.uint8), 8.0)
    return path.read_bytes()


def test_a_clip_becomes_a_reference(served):
    path = upload(served, "clip.mp4", clip(served, 32, 64))
    for use, preprocessor in (("The clip as it is", None), ("Its edges", "canny")):
        done, said = outcome(served, clip={"path": path, **META}, clip_use=use)
        assert done, said
        [reference] = served.calls[-1]
        assert reference.media.content == (served.folder / "clip.mp4").read_bytes()
        assert reference.preprocessor == preprocessor
    assert outcome(served, clip={"path": path, **META}, clip_use="depth:/etc")[0] is False


def test_uploads_that_are_no_clips_are_refused(served):
    cases = (
        ("large.mp4", clip(served, 1088, 1920), "frames of 1920 x 1088: a clip may have 2073600"),
        ("cut.mp4", clip(served, 32, 64)[:400], "cut.mp4"),
        ("text.mp4", b"text", "text.mp4"),
        ("list.m3u8", b"#EXTM3U\n/etc/hostname\n", "list.m3u8"),
    )
    for name, content, message in cases:
        before = len(served.calls)
        path = upload(served, name, content)
        done, said = outcome(served, clip={"path": path, **META})
        assert not done, name
        assert message in said
        assert SECRET.decode() not in said
        assert len(served.calls) == before


def test_uploads_end_where_the_folder_is_full(served, monkeypatch):
    size = sum(path.stat().st_size for path in served.uploads.rglob("*") if path.is_file())
    monkeypatch.setattr(guard, "_MAX_STORED", size + 500_000)
    status, text = upload(served, "large.png", bytes(600_000))
    assert status == 507
    assert b"no room" in text
    monkeypatch.undo()
    assert isinstance(upload(served, "large.png", bytes(600_000)), str)


def test_sampling_ends_when_nobody_waits_for_the_video(served, monkeypatch):
    from ltx_jax.demo import page

    monkeypatch.setattr(page, "_PATIENCE", 0.5)
    begun, ended, count = threading.Event(), threading.Event(), []
    tokens = np.zeros((1, 1, 1), np.float32)

    def slowly(callback):
        begun.set()
        try:
            for number in range(200):
                count.append(number)
                time.sleep(0.1)
                callback(Progress(number, 200, 1.0, tokens))
        finally:
            ended.set()

    served.steps.append(slowly)
    try:
        session = join(served)
        connection = http.client.HTTPConnection("127.0.0.1", served.port)
        connection.request("GET", f"/gradio_api/queue/data?session_hash={session}")
        events = connection.getresponse()
        assert begun.wait(30)
        time.sleep(1.5)
        assert not ended.is_set()  # somebody listens
        events.close()
        connection.close()
        assert ended.wait(10)
        assert len(count) < 100
    finally:
        served.steps.clear()
    assert outcome(served)[0]  # and the next one is sampled
