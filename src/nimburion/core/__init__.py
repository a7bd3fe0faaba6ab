"""Ground floor: values and contracts. Knows nothing of backends, workers or doors."""
