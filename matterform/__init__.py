"""What the model families share: atoms, files, training, evaluation."""

from matterform._version import __version__ as __version__
