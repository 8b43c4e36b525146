"""Energies, forces and properties of crystals from force fields and property models, behind one interface.

pymatgen structures in, one value or one reason per structure out; a bad structure never harms its companions.
"""
