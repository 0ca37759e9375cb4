"""gRPC's calls, each brought from a thread of gRPC's to a coroutine on the event loop, and its answer back.

`grpc.aio` does the same, but a call whose path is not UTF-8 ends its server for good, and it can't say which requests
it waits for: a stranger may leave any number of large ones unfinished. It also wakes the event loop for every step of
a call, where this does when the request is there.

`grpc.server` and `grpc.aio` are both written on `cygrpc`, gRPC's core as it looks in Python, and so is this. It is no
public interface: what of it is used stands in this folder alone. Handlers meet what grpc.aio would show them.
"""
