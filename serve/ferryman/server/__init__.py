"""The gRPC server over a model repository. `app` runs it; `engine` answers without any gRPC and can be embedded."""
