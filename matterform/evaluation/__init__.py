"""How good generated crystals are: pymatgen structures in, one value per structure and a summary with its protocol out.

Nothing here cares which model made the structures, and a bad one is counted with its reason, never raised.
"""
