"""From a checkpoint to a proved bundle: ONNX export, parity with PyTorch, and the bundle's writing."""
