import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltx_jax.config import DiscriminatorConfig, ExecutionConfig, MeshConfig
from ltx_jax.models import convolution
from ltx_jax.models.discriminator import Discriminator
from ltx_jax.runtime import sharding

SMALL = DiscriminatorConfig(base_channels=8, levels=3)


def draw(*shape):
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape, np.float32))


def parameters(cfg, channels=6):
    size = 2**cfg.levels
    clip = jnp.zeros((1, 1, size, size, channels))
    init = jax.jit(lambda key: sharding.unbox(Discriminator(cfg).init(key, clip))["params"])
    return init(jax.random.key(0))


def judge(cfg, params, video):
    options = convolution.compiler_options()
    return jax.jit(
        lambda params, x: Discriminator(cfg).apply({"params": params}, x), compiler_options=options
    )(params, video)


@pytest.mark.thorough
def test_there_is_one_logit_per_patch_and_single_frames_are_clips():
    shape = jax.eval_shape(
        lambda x: Discriminator(DiscriminatorConfig()).init_with_output(jax.random.key(0), x)[0],
        jnp.zeros((2, 17, 64, 96, 6)),
    )
    assert shape.shape == (2, 5, 4, 6)
    assert shape.dtype == jnp.float32
    params = parameters(SMALL)
    assert judge(SMALL, params, draw(2, 1, 16, 8, 6)).shape == (2, 1, 2, 1)
    assert np.isfinite(judge(SMALL, params, draw(2, 1, 16, 8, 6))).all()


@pytest.mark.thorough
def test_channels_double_up_to_their_limit_and_space_is_strided_before_time():
    network = Discriminator(DiscriminatorConfig(), ExecutionConfig(dtype="bfloat16"))
    boxed = jax.eval_shape(
        lambda x: network.init(jax.random.key(0), x), jnp.zeros((1, 9, 32, 32, 6))
    )["params"]
    kernels = [boxed[f"conv_{i}"]["kernel"] for i in range(4)]
    assert [k.value.shape for k in kernels] == [
        (3, 4, 4, 6, 64),
        (3, 4, 4, 64, 128),
        (3, 4, 4, 128, 256),
        (3, 4, 4, 256, 512),
    ]
    assert all(k.names == (None, None, None, "conv_in", "conv_out") for k in kernels)
    assert "norm_0" not in boxed
    # Of nine frames, two levels leave five, and four levels leave three.
    for levels, frames in ((2, 5), (4, 3)):
        few = DiscriminatorConfig(base_channels=8, levels=levels)
        out = jax.eval_shape(
            lambda x, few=few: Discriminator(few).init_with_output(jax.random.key(0), x)[0],
            jnp.zeros((1, 9, 32, 32, 3)),
        )
        assert out.shape[1] == frames


@pytest.mark.thorough
def test_a_patch_sees_what_is_near_it_alone():
    """With one level there is no group norm, which would depend on all pixels."""
    cfg = DiscriminatorConfig(base_channels=8, levels=1)
    params, clip = parameters(cfg), draw(1, 9, 32, 32, 6)

    def middle(x):
        return Discriminator(cfg).apply({"params": params}, x)[0, 2, 8, 8]

    receptive_field = np.asarray(jnp.abs(jax.jit(jax.grad(middle))(clip)).sum((0, 4)) > 0)
    frames, rows, _ = (
        np.flatnonzero(receptive_field.any(axes)) for axes in ((1, 2), (0, 2), (0, 1))
    )
    # Three logits of one window each: 4 + 2 * 2 pixels around row 16, and in frames of stride 2.
    np.testing.assert_array_equal(rows, np.arange(13, 21))
    np.testing.assert_array_equal(frames, np.arange(1, 8))


def test_clips_smaller_than_a_patch_are_refused():
    with pytest.raises(ValueError, match=r"16 x 4 pixels are smaller than a patch.*8: lower"):
        Discriminator(SMALL).init(jax.random.key(0), jnp.zeros((1, 1, 16, 4, 3)))


@pytest.mark.thorough
def test_logits_and_gradients_are_the_same_on_a_mesh():
    """Samples over two devices, rows over four."""
    params, clip = parameters(SMALL), draw(2, 5, 32, 16, 6)
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=2, seq=4))

    def loss(params, x):
        return jnp.mean(jnp.sin(Discriminator(SMALL).apply({"params": params}, x)))

    program = jax.grad(loss, (0, 1))
    alone = jax.jit(program)(params, clip)
    with sharding.use_mesh(mesh):
        place = jax.sharding.NamedSharding(mesh, sharding.spec(("batch",)))
        together = jax.jit(program)(params, jax.device_put(clip, place))
    for x, y in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        # Sums in another order, against the largest value.
        np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(y).max())
