"""Every batch key this plugin adds to SchNetPack's, once, with shape and unit.

B: structures in the batch, N: atoms in the batch, D: descriptor columns. SchNetPack's own keys
come from `schnetpack.properties`; units and names of energy, forces and stress: `quantities.py`.
"""

from typing import Final

#: (B,) 1 where a structure has a stress label, 0 where the stored stress is a placeholder
stress_mask: Final[str] = "stress_mask"

#: (B,) weight of a structure in every loss component, dimensionless
structure_weight: Final[str] = "structure_weight"

#: (N, 1) weight of an atom in the force loss, dimensionless
forces_weight: Final[str] = "forces_weight"

#: (B,) index of the structure's group (metadata "group_names"), int64
group: Final[str] = "group"

#: (N, 1) energy per atom, eV
atomic_energies: Final[str] = "atomic_energies"

#: (N, n_in) what SchNetPack's output modules read from a representation
scalar_representation: Final[str] = "scalar_representation"

# --- from the descriptor store; see descriptors/store/store.py for the layout on disk

#: (N, D) descriptors without scaling
descriptors: Final[str] = "_descriptors"

#: (N,) row of each atom in the arrays of the whole store, int64; absent where a batch carries its
#: own part of them
store_rows: Final[str] = "_store_rows"

#: (rows, 6, D) strain derivative of the descriptors, Voigt order xx yy zz yz xz xy, whole store
store_dg_dstrain: Final[str] = "_store_dg_dstrain"

#: (rows + 1,) first block of each row, whole store, int64
store_block_first: Final[str] = "_store_block_first"

#: (blocks,) atom within its structure that a block differentiates by, whole store, int32
store_block_atom: Final[str] = "_store_block_atom"

#: (blocks,) which row of store_columns a block uses, whole store, int16
store_block_columns: Final[str] = "_store_block_columns"

#: (n, W) columns that are not zero in a block, filled up with columns that are, int32
store_columns: Final[str] = "_store_columns"

#: (blocks, 3, W) position derivative of the descriptors, 1/Ang, whole store; 16-bit integers in
#: units of store_scale where that has rows
store_dg_dr: Final[str] = "_store_dg_dr"

#: (rows, D) what one of the integers of store_dg_dr is worth, 1/Ang, whole store; (0, D) where
#: those are real numbers
store_scale: Final[str] = "_store_scale"
