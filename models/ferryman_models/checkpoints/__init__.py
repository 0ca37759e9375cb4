"""Loading checkpoints: one file a format. Nothing here ever runs code that comes with the weights."""
