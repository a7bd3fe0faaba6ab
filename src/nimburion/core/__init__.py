"""The lowest layer: values and contracts. It imports no backend, worker or entry point."""
