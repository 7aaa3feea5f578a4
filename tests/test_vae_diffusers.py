"""The three released families of the Video-VAE against diffusers, every tensor drawn at random."""

import types

import jax
import numpy as np
import pytest
from golden_weights import golden_state_dict
from vae_reference import (
    FAMILIES,
    TIMES,
    TOLERANCE,
    channels_last,
    decoder,
    encoder,
    initial_shapes,
    normal,
    official_key,
    our_parameters,
    shapes,
)

pytestmark = pytest.mark.thorough

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """One released family at a tiny width: diffusers' model, and ours with the same weights."""
    cfg, arguments = FAMILIES[request.param]
    theirs = diffusers.AutoencoderKLLTXVideo(latent_channels=8, **arguments).eval()
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("latents_")}
    drawn = golden_state_dict({k: tuple(v.shape) for k, v in state.items()})
    theirs.load_state_dict({k: torch.tensor(v) for k, v in drawn.items()}, strict=False)
    params = our_parameters({official_key(k, request.param): v for k, v in drawn.items()})
    assert shapes(params) == shapes(initial_shapes(cfg))
    return types.SimpleNamespace(
        cfg=cfg, theirs=theirs, params=params, encode=encoder(cfg), decode=decoder(cfg)
    )


def test_moments_are_those_of_diffusers(family):
    video = normal(0, 2, 3, 9, 64, 96)
    with torch.no_grad():
        theirs = family.theirs.encode(torch.tensor(video)).latent_dist
    ours = family.encode(family.params, channels_last(video))
    assert ours.mean.shape == ours.logvar.shape == (2, 2, 2, 3, 8)
    np.testing.assert_allclose(ours.mean, channels_last(theirs.mean), atol=TOLERANCE)
    np.testing.assert_allclose(ours.logvar, channels_last(theirs.logvar), atol=TOLERANCE)
    moved = family.encode(family.params, channels_last(video)[:, ::-1])
    assert np.abs(moved.mean - ours.mean).max() > 1e-2


def test_decoded_video_is_that_of_diffusers(family, monkeypatch):
    latents = normal(1, 2, 8, 2, 2, 3)
    draws = []
    randn = torch.randn

    def record(*args, **kwargs):
        draws.append(randn(*args, **kwargs))
        return draws[-1]

    monkeypatch.setattr(torch, "randn", record)
    with torch.no_grad():
        theirs = family.theirs.decode(torch.tensor(latents), temb=torch.tensor(TIMES)).sample
    theirs, z = channels_last(theirs), channels_last(latents)
    maps = tuple(draw.numpy().reshape(draw.shape[-2:]) for draw in draws)
    assert len(maps) == (8 if family.cfg is FAMILIES["0.9.1"][0] else 0)

    ours = family.decode(family.params, z, TIMES, maps)
    assert ours.shape == (2, 9, 64, 96, 3)
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)

    moved = {"latents": family.decode(family.params, z[:, ::-1], TIMES, maps)}
    if family.cfg.timestep_conditioning:
        moved["time"] = family.decode(family.params, z, TIMES[::-1], maps)
    for i in range(len(maps)):
        other = (*maps[:i], -maps[i], *maps[i + 1 :])
        moved[f"map {i}"] = family.decode(family.params, z, TIMES, other)
    leaves, tree = jax.tree.flatten(family.params)
    for i, (path, gain) in enumerate(jax.tree.leaves_with_path(family.params)):
        name = jax.tree_util.keystr(path)
        if "per_channel_scale" in name:
            other = jax.tree.unflatten(tree, [*leaves[:i], -gain, *leaves[i + 1 :]])
            moved[name] = family.decode(other, z, TIMES, maps)
    assert sum("scale" in name for name in moved) == len(maps)
    for name, value in moved.items():
        assert np.abs(value - ours).max() > 1e-2, f"{name} has no effect"
