"""The Open Inference Protocol over the same engines as VisionService; docs/serving.md says what it serves.

`servicer` has the calls, `infer` the way from a request to an answer. Nothing but the server may import this package:
see `ferryman.inference`.
"""
