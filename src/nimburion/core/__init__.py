"""Ground floor: values and contracts. Knows nothing of stores, workers or doors."""
