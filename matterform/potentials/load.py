"""Loads the force field or property model of a config in this process; only orb's `download` uses the network."""

from matterform.potentials.base import Potential, PropertyModel
from matterform.potentials.config import PotentialConfig, PropertyConfig


def load_potential(config: PotentialConfig) -> Potential:
    """Loads a force field into this process; `open_potential` also starts workers and sets the number of threads.

    Raises:
        ValueError: a required path is missing, the checkpoint is of another model, or the device does not exist.
        FileNotFoundError: the path does not exist.
        ImportError: the package is not installed; the message names the extra to install.
    """
    from matterform.potentials import ase, chgnet, mace, matgl, orb

    loaders = {
        "ase": ase.load_ase,
        "chgnet": chgnet.load_chgnet,
        "mace": mace.load_mace,
        "matgl": matgl.load_matgl,
        "orb": orb.load_orb,
    }
    given = {} if config.mlff_batch_size is None else {"batch_size": config.mlff_batch_size}
    potential = loaders[config.mlff_model](config.mlff_path, config.mlff_variant, config.device, **given)
    return potential if config.mlff_corrected is None else potential._replace(corrected=config.mlff_corrected)


def load_property(config: PropertyConfig) -> PropertyModel:
    """Loads a property model into this process.

    Raises:
        ValueError: no path is given, the folder contains no model, or the fidelity or device does not exist.
        FileNotFoundError: the path does not exist.
        ImportError: matgl is not installed.
    """
    from matterform.potentials.matgl import load_matgl_property

    return load_matgl_property(
        config.property_path, config.fidelity, config.device, batch_size=config.property_batch_size
    )
