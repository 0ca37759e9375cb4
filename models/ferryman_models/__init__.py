"""Reference ViT and DETR in PyTorch, checkpoint loading and the embedded checkpoints."""
