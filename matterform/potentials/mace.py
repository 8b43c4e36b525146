"""Being written."""


def load_mace(path=None, variant=None, device="cpu", batch_size=8):
    """Not there yet."""
    raise ValueError("not there yet")
