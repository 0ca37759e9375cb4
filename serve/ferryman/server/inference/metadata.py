"""What the server and its models say of themselves."""

from collections.abc import Sequence

from ferryman import __version__
from ferryman.inference import grpc_service_pb2 as pb
from ferryman.inference import model_config_pb2 as config_pb
from ferryman.server.engine import Engine
from ferryman.server.inference.infer import PICTURES
from ferryman.server.inference.tensors import BYTES, DATATYPES
from ferryman.server.statistics import Duration, StageDurations
from ferryman.specs import TensorSpec

# As Triton calls what runs such files; other runtimes have no name there, and stand for themselves.
_PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}
_DATA_TYPES = {
    "UINT8": config_pb.TYPE_UINT8,
    "INT32": config_pb.TYPE_INT32,
    "INT64": config_pb.TYPE_INT64,
    "FP16": config_pb.TYPE_FP16,
    "FP32": config_pb.TYPE_FP32,
}


def server_metadata(shared_memory: Sequence[str]) -> pb.ServerMetadataResponse:
    """shared_memory: the kinds that clients may register"""
    extensions = ["classification", "model_configuration", "model_repository", "statistics"]
    extensions += [f"{kind}_shared_memory" for kind in shared_memory]
    return pb.ServerMetadataResponse(name="ferryman", version=__version__, extensions=extensions)


def model_metadata(engine: Engine, versions: Sequence[int]) -> pb.ModelMetadataResponse:
    """versions: all that can be asked for

    Clients such as perf_analyzer send every input that is listed, so that only the one that a request must have is.
    """
    tensor = pb.ModelMetadataResponse.TensorMetadata
    specs = engine.model.bundle.manifest.specs
    image, *_ = _merge([spec.inputs for spec in specs])
    inputs, outputs = (
        [tensor(name=name, datatype=datatype, shape=(-1, *dims)) for name, datatype, dims in tensors]
        for tensors in ([image], _merge([spec.outputs for spec in specs]))
    )
    return pb.ModelMetadataResponse(
        name=engine.model.name,
        versions=map(str, versions),
        platform=_platform(engine),
        inputs=inputs,
        outputs=outputs,
    )


def model_config(engine: Engine, versions: Sequence[int], max_batch: int) -> config_pb.ModelConfig:
    """versions: all that can be asked for; max_batch: images of one request that run together"""
    model, specs = engine.model, engine.model.bundle.manifest.specs
    (name, datatype, dims), *optional = _merge([spec.inputs for spec in specs])
    runtime, device, _ = model.target.split("-")
    kind = config_pb.ModelInstanceGroup.KIND_CPU if device == "cpu" else config_pb.ModelInstanceGroup.KIND_GPU
    facts = {
        "task": model.bundle.spec.task,
        "target": model.target,
        "bundle_digest": model.bundle.digest,
        # see model_metadata
        "optional_inputs": "; ".join(
            [*(f"{name} {datatype} {[-1, *dims]}" for name, datatype, dims in optional), f"{PICTURES} {BYTES} [-1, 1]"]
        ),
    }
    return config_pb.ModelConfig(
        name=model.name,
        platform=_platform(engine),
        backend=runtime,
        version_policy=config_pb.ModelVersionPolicy(
            specific=config_pb.ModelVersionPolicy.Specific(versions=list(versions))
        ),
        max_batch_size=max_batch,
        input=[
            config_pb.ModelInput(
                name=name, data_type=_DATA_TYPES[datatype], format=config_pb.ModelInput.FORMAT_NHWC, dims=dims
            )
        ],
        output=[
            config_pb.ModelOutput(name=name, data_type=_DATA_TYPES[datatype], dims=dims)
            for name, datatype, dims in _merge([spec.outputs for spec in specs])
        ],
        instance_group=[
            config_pb.ModelInstanceGroup(name=f"{model.name}_0", count=engine.limits.concurrency, kind=kind)
        ],
        dynamic_batching=config_pb.ModelDynamicBatching(),
        parameters={key: config_pb.ModelParameter(string_value=value) for key, value in facts.items()},
        model_transaction_policy=config_pb.ModelTransactionPolicy(decoupled=False),
    )


def model_statistics(engine: Engine) -> pb.ModelStatistics:
    found = engine.statistics
    return pb.ModelStatistics(
        name=engine.model.name,
        version=str(engine.model.version),
        last_inference=found.last_ms,
        inference_count=found.images,
        execution_count=sum(stages.compute_infer.count for stages in found.batches.values()),
        inference_stats=pb.InferStatistics(
            success=_duration(found.success),
            fail=_duration(found.fail),
            queue=_duration(found.queue),
            **_stages(found.requests),
        ),
        batch_stats=[
            pb.InferBatchStatistics(batch_size=size, **_stages(stages)) for size, stages in found.batches.items()
        ],
    )


def _stages(stages: StageDurations) -> dict[str, pb.StatisticDuration]:
    return {
        "compute_input": _duration(stages.compute_input),
        "compute_infer": _duration(stages.compute_infer),
        "compute_output": _duration(stages.compute_output),
    }


def _duration(duration: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=duration.count, ns=duration.ns)


_Tensor = tuple[str, str, tuple[int, ...]]  # name, datatype, sizes without the batch


def _merge(tensors: Sequence[Sequence[TensorSpec]]) -> list[_Tensor]:
    """Inputs or outputs of one model at several sizes; -1 where a size differs among them."""
    merged: list[_Tensor] = []
    for same in zip(*tensors, strict=True):
        sizes = zip(*(tensor.shape[1:] for tensor in same), strict=True)
        dims = tuple(first if isinstance(first, int) and set(rest) <= {first} else -1 for first, *rest in sizes)
        merged.append((same[0].name, DATATYPES[same[0].dtype], dims))
    return merged


def _platform(engine: Engine) -> str:
    runtime = engine.model.target.split("-")[0]
    return _PLATFORMS.get(runtime, runtime)
