"""Being written."""


def load_matgl(path=None, variant=None, device="cpu", batch_size=8):
    """Not there yet."""
    raise ValueError("not there yet")


def load_matgl_property(path=None, fidelity=None, device="cpu", batch_size=64):
    """Not there yet."""
    raise ValueError("not there yet")
