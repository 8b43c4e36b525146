"""Evaluation of generated crystals: one value per pymatgen structure, and a summary with its protocol.

The functions do not depend on the model, and a bad structure is counted with a reason instead of raising an error.
"""
