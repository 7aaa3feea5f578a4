"""Compares ltx-jax with diffusers: in turn in one process, with the same weights, inputs, precision
and threads.

diffusers runs as written, with convolutions channels last, compiled as a whole, and with each kind
of block compiled once, as its authors advise (this takes seconds). All are reported.
"""

import copy
import functools
import math
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness import Case, Foreign, Report
from benchmarks.networks import Network, decoder, network
from benchmarks.sizes import TORCH, Scale, pick, random
from ltx_jax.checkpoints import diffusers as layout
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.models import convolution
from ltx_jax.models.transformer import compiler_options
from ltx_jax.training.flops import count_flop


def _theirs(kind: str, part: str, ours: Checkpoint, dtype: str) -> Any:
    """A network of diffusers with our weights."""
    import diffusers
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    torch.backends.cudnn.benchmark = True  # autotunes cuDNN's kernels, as XLA does
    torch.set_float32_matmul_precision("high" if torch.cuda.is_available() else "highest")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model"
        layout.write(path, ours)
        load = getattr(diffusers, kind).from_pretrained
        model = load(path / part, torch_dtype=getattr(torch, dtype))
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _torch(x: Any, model: Any) -> Any:
    """An array as a tensor, on the model's device and in its precision."""
    import torch

    tensor = torch.from_numpy(np.array(x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x))
    kind = model.dtype if tensor.is_floating_point() else None
    return tensor.to(model.device, kind)


def _waiting(call: Callable[[], Any], gradient: bool = False) -> Callable[[], Any]:
    import torch

    def run() -> None:
        with torch.set_grad_enabled(gradient):
            call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


def _forms(scale: Scale, model: Any, *names: str) -> dict[str, Callable[[], Any]]:
    """The requested ones of the forms `names` of a model; each is made when it is its turn."""
    import torch

    torch._dynamo.config.recompile_limit = 64  # the same block of a VAE has many sizes

    @functools.cache
    def channels_last() -> Any:
        return copy.deepcopy(model).to(memory_format=torch.channels_last_3d)

    def make(name: str) -> Any:
        source = channels_last() if name.startswith("channels-last") else model
        # All forms with the same layout share their parameters, since those of the VAE take
        # gigabytes.
        shared = {id(x): x for x in (*source.parameters(), *source.buffers())}
        form = copy.deepcopy(source, shared)
        if name.endswith("blocks"):
            form.compile_repeated_blocks(dynamic=False)
        elif name.endswith("compiled"):
            # `encode` and `decode` of a VAE do not call the model itself but these parts of it.
            parts = [getattr(form, part) for part in ("encoder", "decoder") if hasattr(form, part)]
            for part in parts or [form]:
                part.compile()
        return form

    chosen = [name for (axis,) in pick(scale, (names, names)) for name in axis]
    return {name: functools.partial(make, name) for name in dict.fromkeys(chosen)}


def vae(report: Report, scale: Scale) -> None:
    """Decoding and encoding a whole video."""
    module, params, (latents, t) = decoder(scale)
    t_size, h, w = scale.grid
    side, length, dtype = scale.vae.spatial_factor, scale.vae.temporal_factor, scale.execution.dtype
    size = (1, (t_size - 1) * length + 1, h * side, w * side, 3)
    video, options = random(*size, seed=6, dtype=dtype), convolution.compiler_options() or {}

    def decode(params: Any, latents: Any, t: Any) -> Any:
        return module.apply({"params": params}, latents, t, method="decode")

    def encode(params: Any, video: Any) -> Any:
        return module.apply({"params": params}, video, method="encode").mean  # pyright: ignore[reportAttributeAccessIssue]

    checkpoint = Checkpoint(vae=module.cfg, vae_params=params)
    theirs = _theirs("AutoencoderKLLTXVideo", "vae", checkpoint, dtype)
    theirs._repeated_blocks = ["LTXVideoResnetBlock3d"]  # diffusers names none for the VAE
    z, clip, time = (_torch(x, theirs) for x in (_first(latents), _first(video), t))

    def foreign(part: str, make: Callable[[], Any]) -> Callable[[], Any]:
        def prepare() -> Callable[[], Any]:
            model = make()
            if part == "decode":
                return _waiting(lambda: model.decode(z, time).sample)
            return _waiting(lambda: model.encode(clip).latent_dist.mean)

        return prepare

    ours = {"decode": (decode, (params, latents, t)), "encode": (encode, (params, video))}
    for part, (function, arguments) in ours.items():
        flop = count_flop(function, *arguments)
        shape = "x".join(map(str, arguments[1].shape))
        facts = {"dtype": dtype, "branches": 1, "shapes": shape}
        cases: list[Case | Foreign] = [
            Case(f"{part}, ours", function, arguments, flop, options=options)
        ]
        for form, make in _forms(scale, theirs, *TORCH[3:]).items():
            cases.append(Foreign(f"{part}, diffusers {form}", foreign(part, make), flop, facts))
        _compare(report, "vae", cases)


def _first(x: Any) -> Any:
    """Channels first, as torch has them."""
    return jnp.moveaxis(x, -1, 1)


def _inputs(net: Network, theirs: Any) -> dict[str, Any]:
    """Inputs of diffusers' transformer, which computes positions itself, at the same cost."""
    latents, timestep, context = net.inputs
    return {
        "hidden_states": _torch(latents, theirs),
        "timestep": _torch(timestep * 1000, theirs),
        "encoder_hidden_states": _torch(context.caption, theirs),
        "encoder_attention_mask": _torch(context.caption_mask, theirs),
    }


def transformer(report: Report, scale: Scale) -> None:
    """One prediction; ours in the plain form and in the form that samples fastest on a GPU."""
    t, h, w = grid = max((scale.grid, *scale.more_grids), key=math.prod)
    net = network(scale, grid=grid)
    dtype, options = scale.execution.dtype, compiler_options() or {}
    flop, (params, inputs) = net.flop, net.fast()
    checkpoint = Checkpoint(transformer=net.model.cfg, transformer_params=net.params)
    theirs = _theirs("LTXVideoTransformer3DModel", "transformer", checkpoint, dtype)
    call = _inputs(net, theirs) | {"num_frames": t, "height": h, "width": w}
    facts = {"dtype": dtype, "branches": 1, "shapes": "x".join(map(str, net.inputs[0].shape))}

    def foreign(make: Callable[[], Any]) -> Callable[[], Any]:
        def prepare() -> Callable[[], Any]:
            model = make()
            return _waiting(lambda: model(**call, return_dict=False))

        return prepare

    stored, derived = (net.params, *net.inputs), (params, *inputs)
    cases: list[Case | Foreign] = [
        Case("forward, ours as stored", net.forward, stored, flop, options=options),
        Case("forward, ours, fast form", net.fast_form, derived, flop, options=options),
    ]
    for form, make in _forms(scale, theirs, *TORCH[:3]).items():
        cases.append(Foreign(f"forward, diffusers {form}", foreign(make), flop, facts))
    _compare(report, "transformer", cases)


def training(report: Report, scale: Scale) -> None:
    """A training step of the transformer: prediction, gradient and AdamW, in one precision."""
    t, h, w = grid = max((scale.grid, *scale.more_grids), key=math.prod)
    net, dtype = network(scale, grid=grid), scale.execution.dtype
    tx = optax.adamw(1e-4, weight_decay=0.01)
    opt_state = tx.init(net.params)
    target = random(*net.inputs[0].shape, seed=9, dtype=jnp.float32)

    def step(params: Any, opt_state: Any, target: Any, *inputs: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            return jnp.mean((net.forward(params, *inputs) - target) ** 2)

        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    flop = 3 * net.flop
    checkpoint = Checkpoint(transformer=net.model.cfg, transformer_params=net.params)
    theirs = _theirs("LTXVideoTransformer3DModel", "transformer", checkpoint, dtype)
    call = _inputs(net, theirs) | {"num_frames": t, "height": h, "width": w}
    target_tensor = _torch(target, theirs)

    def foreign(make: Callable[[], Any]) -> Callable[[], Any]:
        def prepare() -> Callable[[], Any]:
            import torch

            model = make().train()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)

            def update() -> None:
                optimizer.zero_grad(set_to_none=True)
                out = model(**call, return_dict=False)[0]
                ((out - target_tensor) ** 2).mean().backward()
                optimizer.step()

            return _waiting(update, gradient=True)

        return prepare

    facts = {"dtype": dtype, "branches": 1, "shapes": "x".join(map(str, net.inputs[0].shape))}
    arguments = (net.params, opt_state, target, *net.inputs)
    cases: list[Case | Foreign] = [
        Case("step, ours", step, arguments, flop, options=compiler_options() or {}, carried=2)
    ]
    for form, make in _forms(scale, theirs, "written", "compiled").items():
        cases.append(Foreign(f"step, diffusers {form}", foreign(make), flop, facts))
    _compare(report, "training", cases)


def _compare(report: Report, section: str, cases: list[Case | Foreign]) -> None:
    """Times all cases in turn, and adds the ratio of our fastest to diffusers' fastest."""
    before = len(report.rows)
    report.compare(section, cases)
    mine, others = [], []
    for row in report.rows[before:]:
        if row["status"] == "ok":
            (others if "diffusers" in row["case"] else mine).append(row)
    if not (mine and others):
        return
    part, dtype = cases[0].name.partition(",")[0], others[0]["dtype"]
    ours, theirs = (min(rows, key=lambda row: row["median_s"]) for rows in (mine, others))
    ratio, cpu_ratio = (ours[key] / theirs[key] for key in ("median_s", "cpu_s"))
    note = f"{ratio:.3f}, {cpu_ratio:.3f} in seconds of CPU"
    name = f"{part}: best / diffusers' best"
    report.add(section, name, dtype=dtype, note=note, ratio=ratio, cpu=cpu_ratio)
