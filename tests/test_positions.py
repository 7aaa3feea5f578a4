"""Where tokens lie, and the rotary tables of their positions."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltx_jax.config import TransformerConfig
from ltx_jax.diffusion import positions

GOLDEN = pathlib.Path(__file__).parent / "golden"
WIDTH_64 = TransformerConfig(num_attention_heads=4, attention_head_dim=16)
GRID = (3, 4, 5)


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "transformer_tiny.npz"))


@pytest.fixture(scope="module")
def misc():
    return dict(np.load(GOLDEN / "misc.npz"))


def test_tokens_run_over_columns_then_rows_then_frames(golden):
    latents = jnp.moveaxis(golden["latents_bcfhw"], 1, -1)
    got = positions.patchify(latents)
    np.testing.assert_array_equal(got, golden["tokens"])
    frame, row, column = 2, 1, 3
    np.testing.assert_array_equal(got[:, (frame * 4 + row) * 5 + column], latents[:, 2, 1, 3])


def test_unpatchify_undoes_patchify():
    latents = jnp.arange(2 * 3 * 4 * 5 * 6.0).reshape(2, *GRID, 6)
    np.testing.assert_array_equal(positions.unpatchify(positions.patchify(latents), GRID), latents)


def test_a_grid_that_the_tokens_do_not_fill_is_an_error():
    with pytest.raises(ValueError, match=r"60 tokens do not fill a latent grid of \(3, 4, 4\)"):
        positions.unpatchify(jnp.zeros((1, 60, 8)), (3, 4, 4))


@pytest.mark.parametrize("causal", [False, True])
def test_coordinates_match_the_released_code(golden, causal):
    latent = positions.latent_coords(GRID)
    np.testing.assert_array_equal(latent, golden["latent_coords"][0].T)
    pixel = positions.pixel_coords(latent, 8, 32, causal)
    np.testing.assert_array_equal(pixel, golden[f"pixel_coords_causal{causal:d}"][0].T)
    at = positions.positions(pixel, 25.0)
    np.testing.assert_array_equal(at, golden[f"frac_coords_causal{causal:d}"][0].T)


def test_the_first_latent_frame_is_one_frame_long_when_causal():
    latent = positions.latent_coords((4, 1, 2))
    frames = positions.pixel_coords(latent, 8, 32, causal=True)[::2, 0]
    np.testing.assert_array_equal(frames, [0, 1, 9, 17])
    pixel = positions.pixel_coords(latent, 4, 16, causal=True)
    np.testing.assert_array_equal(pixel[::2, 0], [0, 1, 5, 9])
    np.testing.assert_array_equal(pixel[:2, 2], [0, 16])


def test_seconds_are_one_product_with_the_rounded_reciprocal_of_the_rate():
    """Not a quotient: at 24 frames a second the two differ, and the fastest angles with them."""
    pixel = jnp.stack([jnp.arange(257)] * 3, axis=-1)
    want = np.arange(257, dtype=np.float32) * np.float32(1 / 24)
    assert (want != np.arange(257, dtype=np.float32) / np.float32(24)).any()
    got = jax.jit(lambda p: positions.positions(p, 24))(pixel)
    np.testing.assert_array_equal(got[:, 0], want)
    np.testing.assert_array_equal(got[:, 1], np.arange(257))


def test_each_sample_may_have_a_frame_rate_of_its_own():
    pixel = positions.pixel_coords(positions.latent_coords(GRID), 8, 32, causal=True)
    rates = (24.0, 30.0)
    got = positions.positions(jnp.stack([pixel] * 2), jnp.array(rates))
    for sample, rate in zip(got, rates, strict=True):
        np.testing.assert_array_equal(sample, positions.positions(pixel, rate))


@pytest.mark.parametrize("causal", [0, 1])
def test_rotary_tables_match_the_released_code(golden, causal):
    at = jnp.moveaxis(golden[f"frac_coords_causal{causal}"], 1, 2)
    for table, name in zip(positions.rope_tables(at, WIDTH_64), ("cos", "sin"), strict=True):
        want = golden[f"rope_{name}_causal{causal}"]
        # Both rows of a pair hold the same; cosines are rounded by other libraries.
        np.testing.assert_allclose(table, want[..., ::2], rtol=0, atol=1e-6)
        np.testing.assert_allclose(table, want[..., 1::2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("width", [2048, 4096])
def test_frequencies_match_the_released_code(misc, width):
    got, want = positions.rope_frequencies(width, 10_000.0), misc[f"rope_base_{width}"]
    # A power of PyTorch's is not always the nearest float32: three entries are one unit off.
    assert np.sum(got != want) <= 3
    np.testing.assert_array_less(np.abs(got - want), 1.01 * np.spacing(want))


def assert_tables_close(got, want):
    """Equal to rounding: the angles are the same, and cosines are rounded by other libraries."""
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_rotary_tables_of_the_2b_model_match_the_released_code(misc, monkeypatch):
    """At the released frequencies: the bit by which three differ turns an angle by up to 1e-3."""
    monkeypatch.setattr(positions, "rope_frequencies", lambda *_: misc["rope_base_2048"])
    at = jnp.moveaxis(misc["rope_coords"], 1, 2)
    cos, _ = jax.jit(lambda x: positions.rope_tables(x, TransformerConfig()))(at)
    assert_tables_close(cos, misc["rope2048_cos"][..., ::2])


@pytest.mark.parametrize(
    ("heads", "head_dim"), [(4, 16), (2, 24), (2, 16), (32, 64)], ids=lambda x: str(x)
)
@pytest.mark.parametrize("fps", [24.0, 30.0])
def test_rotary_tables_match_diffusers(heads, head_dim, fps, monkeypatch):
    """At PyTorch's powers, which for the released widths differ from ours in the last bit."""
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("diffusers.models.transformers.transformer_ltx")

    cfg = TransformerConfig(num_attention_heads=heads, attention_head_dim=head_dim)
    coords = positions.pixel_coords(positions.latent_coords((18, 2, 2)), 8, 32, causal=True)
    at = positions.positions(coords, fps)
    oracle = theirs.LTXVideoRotaryPosEmbed(dim=cfg.width)
    powers = 10_000.0 ** torch.linspace(0, 1, cfg.width // 6)
    frequencies = (powers * np.pi / 2).numpy()
    ours = positions.rope_frequencies(cfg.width, 10_000.0)
    np.testing.assert_array_less(np.abs(ours - frequencies), 1.01 * np.spacing(frequencies))
    monkeypatch.setattr(positions, "rope_frequencies", lambda *_: frequencies)
    want = oracle(torch.zeros(1), video_coords=torch.from_numpy(np.array(at)).T[None])
    # Compiled: XLA must not turn the quotient of a position into a product.
    for got, table in zip(jax.jit(lambda x: positions.rope_tables(x, cfg))(at), want, strict=True):
        assert got.shape == (1, 72, cfg.width // 2)
        assert got.dtype == jnp.float32
        assert_tables_close(got, table[..., ::2].numpy())


def test_frame_rate_and_theta_and_extent_move_the_tables():
    pixel = positions.pixel_coords(positions.latent_coords(GRID), 8, 32, causal=True)

    def table(fps=24.0, theta=10_000.0, extent=(20.0, 2048.0, 2048.0)):
        cfg = TransformerConfig(
            num_attention_heads=4,
            attention_head_dim=16,
            positional_embedding_theta=theta,
            positional_embedding_max_pos=extent,
        )
        return positions.rope_tables(positions.positions(pixel, fps), cfg)[0]

    for other in (table(fps=25.0), table(theta=1000.0), table(extent=(20.0, 1024.0, 2048.0))):
        assert np.abs(other - table()).max() > 1e-2


def test_channels_left_over_come_first_and_do_not_rotate():
    at = jnp.full((1, 3), 7.0)
    cos, sin = positions.rope_tables(at, WIDTH_64)  # 64 = 10 frequencies x 3 axes x 2 + 4
    np.testing.assert_array_equal(cos[..., :2], 1)
    np.testing.assert_array_equal(sin[..., :2], 0)
    assert (sin[..., 2:5] != 0).all()


def test_a_width_too_small_for_a_frequency_does_not_rotate():
    cfg = TransformerConfig(num_attention_heads=2, attention_head_dim=2)
    cos, sin = positions.rope_tables(jnp.ones((1, 5, 3)), cfg)
    np.testing.assert_array_equal(cos, np.ones((1, 5, 2)))
    np.testing.assert_array_equal(sin, np.zeros((1, 5, 2)))


def test_a_single_frequency_is_the_slowest():
    """A quarter turn at each end of an axis."""
    cfg = TransformerConfig(num_attention_heads=2, attention_head_dim=4)
    at = jnp.array([cfg.positional_embedding_max_pos, (0.0, 0.0, 0.0)])
    _, sin = positions.rope_tables(at, cfg)
    np.testing.assert_allclose(sin[0, :, 1:], [[1, 1, 1], [-1, -1, -1]], atol=1e-6)
