"""Code generated from protos/ferryman/v1 by `make protos`; vision_pb2 and vision_pb2_grpc are never edited by hand."""
