"""What differs between code bases. `patches.graft` writes this file anew in each."""

# Values of mm_projector_type that the code base's own factory knows and that connectors have too; they stay with it.
OWN_TYPES: frozenset[str] = frozenset()
