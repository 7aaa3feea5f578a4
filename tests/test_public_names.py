"""What a researcher imports from the packages themselves."""

import importlib

import pytest

PACKAGES = [
    "ltx_jax",
    *(f"ltx_jax.{name}" for name in ("data", "diffusion", "inference", "models", "world")),
]


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_is_there(name):
    package = importlib.import_module(name)
    for public in package.__all__:
        assert getattr(package, public).__name__ == public
    with pytest.raises(AttributeError, match=f"{name}' has no attribute 'Nothing'"):
        package.Nothing  # noqa: B018
