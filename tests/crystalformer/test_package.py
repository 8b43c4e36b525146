"""The public names of the package."""

import crystalformer


def test_every_public_name_is_there_and_listed():
    for name in crystalformer.__all__:
        assert getattr(crystalformer, name) is not None
    assert set(crystalformer.__all__) <= set(dir(crystalformer))


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(crystalformer, "no_such_name")
