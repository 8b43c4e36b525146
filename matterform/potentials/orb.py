"""Being written."""


def load_orb(path=None, variant=None, device="cpu", batch_size=8):
    """Not there yet."""
    raise ValueError("not there yet")
