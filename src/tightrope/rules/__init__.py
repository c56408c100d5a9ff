"""How each operation carries the law of a tensor, forward and backward: one file per family."""
