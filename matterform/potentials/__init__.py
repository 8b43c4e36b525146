"""One interface to force fields and property models: energies, forces and properties of crystals.

Each pymatgen structure gives a value or a reason why there is none; a bad structure does not affect the others.
"""
