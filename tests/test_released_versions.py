"""Names and shapes of every released version, without memory."""

import json
import math

import jax
import pytest

from ltx_jax.checkpoints import diffusers_config, diffusers_vae, keys, official_config, releases

VERSIONS = sorted(releases.RELEASED)
SIZES = {"2b": (28, 2048, 715, 1_923_385_472), "13b": (48, 4096, 1215, 13_042_569_344)}
VAE_COUNTS = {
    "2b-0.9.0": (188, 419_193_649, 180_404_353, 238_789_296),
    "2b-0.9.1": (292, 934_976_434, 180_404_353, 754_572_081),
}
VAE_COUNTS_095 = (224, 1_246_913_522, 694_098_881, 552_814_641)


def configs(version: str) -> official_config.Configs:
    return official_config.parse(json.dumps(releases.RELEASED[version].config), version)


def transformer_table(layers: int, d: int) -> dict[str, tuple[int, ...]]:
    """The table of released tensors, written down by hand."""
    table = {"scale_shift_table": (2, d)}

    def linear(name: str, into: int, out: int) -> None:
        table[f"{name}.weight"] = (out, into)
        table[f"{name}.bias"] = (out,)

    linear("patchify_proj", 128, d)
    linear("adaln_single.emb.timestep_embedder.linear_1", 256, d)
    linear("adaln_single.emb.timestep_embedder.linear_2", d, d)
    linear("adaln_single.linear", d, 6 * d)
    linear("caption_projection.linear_1", 4096, d)
    linear("caption_projection.linear_2", d, d)
    linear("proj_out", d, 128)
    for i in range(layers):
        block = f"transformer_blocks.{i}"
        table[f"{block}.scale_shift_table"] = (6, d)
        for attention in ("attn1", "attn2"):
            for name in ("to_q", "to_k", "to_v", "to_out.0"):
                linear(f"{block}.{attention}.{name}", d, d)
            for name in ("q_norm", "k_norm"):
                table[f"{block}.{attention}.{name}.weight"] = (d,)
        linear(f"{block}.ff.net.0.proj", d, 4 * d)
        linear(f"{block}.ff.net.2", 4 * d, d)
    return table


class VAETable(dict):
    """The released tables of blocks, each spelt out by its channels."""

    def conv(self, name: str, into: int, out: int, wrapper: str = ".conv") -> None:
        self[f"{name}{wrapper}.weight"] = (out, into, 3, 3, 3)
        self[f"{name}{wrapper}.bias"] = (out,)

    def linear(self, name: str, into: int, out: int) -> None:
        self[f"{name}.weight"], self[f"{name}.bias"] = (out, into), (out,)

    def embedder(self, name: str, width: int) -> None:
        self.linear(f"{name}.timestep_embedder.linear_1", 256, width)
        self.linear(f"{name}.timestep_embedder.linear_2", width, width)

    def res(self, name: str, c: int, n: int, time: bool = False, noise: bool = False) -> None:
        for j in range(n):
            block = f"{name}.res_blocks.{j}"
            self.conv(f"{block}.conv1", c, c)
            self.conv(f"{block}.conv2", c, c)
            if time:
                self[f"{block}.scale_shift_table"] = (4, c)
            if noise:
                self[f"{block}.per_channel_scale1"] = (c, 1, 1)
                self[f"{block}.per_channel_scale2"] = (c, 1, 1)
        if time:
            self.embedder(f"{name}.time_embedder", 4 * c)

    def widen(self, name: str, into: int, out: int) -> None:
        self.conv(f"{name}.conv1", into, out)
        self.conv(f"{name}.conv2", out, out)
        self[f"{name}.conv_shortcut.weight"] = (out, into, 1, 1, 1)
        self[f"{name}.conv_shortcut.bias"] = (out,)
        self[f"{name}.norm3.norm.weight"] = self[f"{name}.norm3.norm.bias"] = (into,)


def vae_table(family: str) -> VAETable:
    table = VAETable()
    table.conv("encoder.conv_in", 48, 128)
    table.conv("decoder.conv_out", 128, 48)
    down, up = "encoder.down_blocks", "decoder.up_blocks"
    if family == "0.9.5":
        for i, (c, n) in enumerate(((128, 4), (256, 6), (512, 6), (1024, 2), (2048, 2))):
            table.res(f"{down}.{2 * i}", c, n)
        for i, (into, out) in ((1, (128, 64)), (3, (256, 256)), (5, (512, 128)), (7, (1024, 256))):
            table.conv(f"{down}.{i}", into, out, ".conv.conv")
        table.conv("encoder.conv_out", 2048, 129)
    else:
        for i, c, n in ((0, 128, 4), (3, 256, 3), (6, 512, 3), (8, 512, 3), (9, 512, 4)):
            table.res(f"{down}.{i}", c, n)
        for i, c in ((1, 128), (4, 256), (7, 512)):
            table.conv(f"{down}.{i}", c, c)
        table.widen(f"{down}.2", 128, 256)
        table.widen(f"{down}.5", 256, 512)
        table.conv("encoder.conv_out", 512, 129)
    if family == "0.9.0":
        table.conv("decoder.conv_in", 128, 512)
        for i, c, n in ((0, 512, 4), (1, 512, 3), (3, 512, 3), (6, 256, 3), (9, 128, 4)):
            table.res(f"{up}.{i}", c, n)
        for i, c in ((2, 512), (5, 256), (8, 128)):
            table.conv(f"{up}.{i}", c, 8 * c, ".conv.conv")
        table.widen(f"{up}.4", 512, 256)
        table.widen(f"{up}.7", 256, 128)
        return table
    table.conv("decoder.conv_in", 128, 1024)
    layers = (5, 5, 5, 5) if family == "0.9.5" else (8, 7, 6, 5)
    for i, (c, n) in enumerate(zip((1024, 512, 256, 128), layers, strict=True)):
        table.res(f"{up}.{2 * i}", c, n, time=True, noise=family == "0.9.1" and i > 0)
        if i < 3:
            table.conv(f"{up}.{2 * i + 1}", c, 4 * c, ".conv.conv")
    table["decoder.timestep_scale_multiplier"] = ()
    table["decoder.last_scale_shift_table"] = (2, 128)
    table.embedder("decoder.last_time_embedder", 256)
    return table


def numel(shapes: dict[str, tuple[int, ...]], prefix: str = "") -> int:
    return sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(prefix))


@pytest.mark.parametrize("version", VERSIONS)
def test_the_transformer_has_exactly_the_released_tensors(version):
    layers, width, count, parameters = SIZES[version.partition("-")[0]]
    cfg = configs(version).transformer
    shapes = keys.stored_shapes(keys.transformer_leaves(keys.transformer_boxed(cfg)))
    assert shapes == transformer_table(layers, width)
    assert (len(shapes), numel(shapes)) == (count, parameters)


@pytest.mark.thorough
@pytest.mark.parametrize("version", VERSIONS)
def test_the_vae_has_exactly_the_released_tensors(version):
    cfg = configs(version).vae
    shapes = keys.stored_shapes(keys.vae_leaves(cfg, keys.vae_boxed(cfg)))
    family = version.removeprefix("2b-") if version in VAE_COUNTS else "0.9.5"
    assert shapes == vae_table(family)
    counts = (len(shapes), numel(shapes), numel(shapes, "encoder"), numel(shapes, "decoder"))
    assert counts == VAE_COUNTS.get(version, VAE_COUNTS_095)


@pytest.mark.thorough
@pytest.mark.parametrize("version", VERSIONS)
def test_released_tensors_fill_our_parameters_exactly(version):
    """The other direction: every parameter gets one tensor per layer, of its own size."""
    parsed = configs(version)
    for boxed, leaves in (
        (keys.transformer_boxed(parsed.transformer), keys.transformer_leaves),
        (keys.vae_boxed(parsed.vae), lambda boxed: keys.vae_leaves(parsed.vae, boxed)),
    ):
        made = leaves(boxed)
        names = [name for leaf in made for name in leaf.names]
        assert len(set(names)) == len(names)
        assert len(made) == len(jax.tree.leaves(boxed))
        for leaf in made:
            assert len(leaf.names) * math.prod(leaf.stored_shape) == math.prod(leaf.shape)


@pytest.mark.parametrize("version", VERSIONS)
def test_config_survives_being_written(version):
    parsed = configs(version)
    assert official_config.parse(official_config.dump(parsed), version) == parsed


@pytest.mark.thorough
@pytest.mark.parametrize("version", ["2b-0.9.0", "2b-0.9.1", "2b-0.9.8-distilled", "13b-0.9.8-dev"])
def test_diffusers_classes_have_the_tensors_that_we_name_for_them(version):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    from diffusers.loaders import single_file_utils

    parsed = configs(version)
    with torch.device("meta"):
        transformer = diffusers.LTXVideoTransformer3DModel.from_config(
            diffusers_config.dump_transformer(parsed.transformer)
        )
        vae = diffusers.AutoencoderKLLTXVideo.from_config(diffusers_vae.dump_vae(parsed.vae))
    ours = keys.stored_shapes(keys.transformer_leaves(keys.transformer_boxed(parsed.transformer)))
    renamed = {keys.diffusers_transformer_name(name): shape for name, shape in ours.items()}
    assert renamed == {name: tuple(x.shape) for name, x in transformer.state_dict().items()}

    theirs = {name: tuple(x.shape) for name, x in vae.state_dict().items()}
    shapes = keys.stored_shapes(keys.vae_leaves(parsed.vae, keys.vae_boxed(parsed.vae)))
    shapes |= dict.fromkeys((keys.STATISTICS_MEAN, keys.STATISTICS_STD), (128,))
    rename = diffusers_vae.vae_renamer(diffusers_vae.vae_names(parsed.vae))
    assert {rename(name): shape for name, shape in shapes.items()} == theirs
    # diffusers' own converter of official files is a second witness.
    fake = {f"vae.{name}": torch.empty(shape, device="meta") for name, shape in shapes.items()}
    originals = dict(fake)
    converted = single_file_utils.convert_ltx_vae_checkpoint_to_diffusers(fake)
    order = {id(x): name for name, x in converted.items()}
    assert {n: rename(n) for n in shapes} == {n: order[id(originals[f"vae.{n}"])] for n in shapes}


@pytest.mark.parametrize("version", ["2b-0.9.0", "2b-0.9.1", "2b-0.9.8-distilled"])
def test_released_vae_configs_survive_the_form_of_diffusers(version):
    cfg = configs(version).vae
    raw = json.loads(json.dumps(diffusers_vae.dump_vae(cfg)))
    back, names = diffusers_vae.vae(raw, "config.json")
    assert diffusers_vae.dump_vae(back) == diffusers_vae.dump_vae(cfg)
    assert names == diffusers_vae.vae_names(cfg)
    for name in ("encoder_blocks", "decoder_blocks"):
        ours = [(b.name, b.num_layers, b.channel_multiplier) for b in getattr(cfg, name)]
        assert [(b.name, b.num_layers, b.channel_multiplier) for b in getattr(back, name)] == ours
