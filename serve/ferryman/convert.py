"""Answers as messages, and messages as answers: protobuf's types stop here, on the server's side and the client's."""

from collections.abc import Sequence
from typing import get_args

import numpy as np

from ferryman.answers import Answer, Answerer, Frame, ModelFacts, OutputParity
from ferryman.attention import Attention
from ferryman.errors import FerrymanError
from ferryman.masks import Mask
from ferryman.predictor import Timings
from ferryman.results import Classification, Detection, Detections, Embedding, Prediction, Segment, Segmentation
from ferryman.specs import Task
from ferryman.status import code_from_error, error_from_number, number_from_code, public_line
from ferryman.v1 import vision_pb2 as pb


def message_from_attention(attention: Attention | None) -> pb.Attention | None:
    if attention is None:
        return None
    rows, columns = attention.grid.shape
    values = attention.grid.ravel().tolist()  # (rows, columns) -> (rows*columns,)
    return pb.Attention(rows=rows, columns=columns, values=values, covers=_message_from_box(attention.covers_xyxy))


def attention_from_message(message: pb.Attention) -> Attention:
    """Raises FerrymanError for another number of values than the grid has."""
    try:
        # (rows*columns,) -> (rows, columns)
        grid = np.array(message.values, dtype=np.float32).reshape(message.rows, message.columns)
        return Attention(grid, _box_from_message(message.covers))
    except ValueError as error:
        raise FerrymanError(f"the server's answer can't be read: {error}") from error


def message_from_classification(result: Classification) -> pb.Classification:
    return pb.Classification(
        size=_message_from_size(result.size),
        predictions=[pb.Prediction(label=p.label, class_id=p.class_id, score=p.score) for p in result.predictions],
        canvas=_message_from_size(result.canvas),
        attention=message_from_attention(result.attention),
    )


def classification_from_message(message: pb.Classification) -> Classification:
    predictions = tuple(Prediction(p.label, p.class_id, p.score) for p in message.predictions)
    attention = attention_from_message(message.attention) if message.HasField("attention") else None
    return Classification(_size_from_message(message.size), _size_from_message(message.canvas), predictions, attention)


def message_from_detections(result: Detections) -> pb.Detections:
    return pb.Detections(
        size=_message_from_size(result.size),
        detections=[
            pb.Detection(
                label=found.label,
                class_id=found.class_id,
                score=found.score,
                box=_message_from_box(found.box_xyxy),
                attention=message_from_attention(found.attention),
            )
            for found in result.detections
        ],
        canvas=_message_from_size(result.canvas),
    )


def detections_from_message(message: pb.Detections) -> Detections:
    detections = tuple(
        Detection(
            found.label,
            found.class_id,
            found.score,
            _box_from_message(found.box),
            attention_from_message(found.attention) if found.HasField("attention") else None,
        )
        for found in message.detections
    )
    return Detections(_size_from_message(message.size), _size_from_message(message.canvas), detections)


def message_from_embedding(result: Embedding) -> pb.Embedding:
    rows, columns, _ = result.patches.shape
    return pb.Embedding(
        size=_message_from_size(result.size),
        cls=result.cls.tolist(),
        patches=result.patches.ravel().tolist(),  # (rows, columns, dim) -> (rows*columns*dim,)
        rows=rows,
        columns=columns,
        canvas=_message_from_size(result.canvas),
        attention=message_from_attention(result.attention),
    )


def embedding_from_message(message: pb.Embedding) -> Embedding:
    cls = np.array(message.cls, dtype=np.float32)
    # (rows*columns*dim,) -> (rows, columns, dim)
    patches = np.array(message.patches, dtype=np.float32).reshape(message.rows, message.columns, len(cls))
    attention = attention_from_message(message.attention) if message.HasField("attention") else None
    return Embedding(_size_from_message(message.size), _size_from_message(message.canvas), cls, patches, attention)


def message_from_segmentation(result: Segmentation) -> pb.Segmentation:
    return pb.Segmentation(
        size=_message_from_size(result.size),
        segments=[
            pb.Segment(
                label=found.label,
                class_id=found.class_id,
                score=found.score,
                box=_message_from_box(found.box_xyxy),
                area=found.mask.area,
                counts=found.mask.counts,
            )
            for found in result.segments
        ],
        canvas=_message_from_size(result.canvas),
    )


def segmentation_from_message(message: pb.Segmentation) -> Segmentation:
    """Raises FerrymanError for a mask that is not as large as its picture."""
    width, height = _size_from_message(message.size)
    try:
        segments = tuple(
            Segment(
                found.label,
                found.class_id,
                found.score,
                _box_from_message(found.box),
                Mask((height, width), tuple(found.counts)),
            )
            for found in message.segments
        )
    except ValueError as error:
        raise FerrymanError(f"the server's answer can't be read: {error}") from error
    return Segmentation((width, height), _size_from_message(message.canvas), segments)


def message_from_timings(timings: Timings) -> pb.Timings:
    return pb.Timings(
        decode_ms=timings.decode_ms,
        resize_ms=timings.resize_ms,
        queue_ms=timings.queue_ms,
        compute_ms=timings.compute_ms,
        postprocess_ms=timings.postprocess_ms,
        total_ms=timings.total_ms,
        encode_ms=timings.encode_ms,
    )


def timings_from_message(message: pb.Timings) -> Timings:
    return Timings(
        decode_ms=message.decode_ms,
        resize_ms=message.resize_ms,
        queue_ms=message.queue_ms,
        compute_ms=message.compute_ms,
        postprocess_ms=message.postprocess_ms,
        total_ms=message.total_ms,
        encode_ms=message.encode_ms if message.HasField("encode_ms") else None,
    )


def message_from_answerer(answerer: Answerer) -> pb.Answerer:
    model = pb.ModelRef(name=answerer.name, version=answerer.version)
    return pb.Answerer(model=model, target=answerer.target, bundle_digest=answerer.bundle_digest)


def answerer_from_message(message: pb.Answerer) -> Answerer:
    return Answerer(message.model.name, message.model.version, message.target, message.bundle_digest)


def classifications_from_response(message: pb.ClassifyResponse) -> Answer[Classification]:
    results = tuple(classification_from_message(result) for result in message.results)
    return Answer(results, timings_from_message(message.timings), answerer_from_message(message.answerer))


def detections_from_response(message: pb.DetectResponse) -> Answer[Detections]:
    results = tuple(detections_from_message(result) for result in message.results)
    return Answer(results, timings_from_message(message.timings), answerer_from_message(message.answerer))


def embeddings_from_response(message: pb.EmbedResponse) -> Answer[Embedding]:
    results = tuple(embedding_from_message(result) for result in message.results)
    return Answer(results, timings_from_message(message.timings), answerer_from_message(message.answerer))


def segmentations_from_response(message: pb.SegmentResponse) -> Answer[Segmentation]:
    results = tuple(segmentation_from_message(result) for result in message.results)
    return Answer(results, timings_from_message(message.timings), answerer_from_message(message.answerer))


def message_from_frame_error(error: FerrymanError) -> pb.FrameError:
    code = number_from_code(code_from_error(error))
    return pb.FrameError(code=code, reason=type(error).__name__, message=public_line(error))


def classification_frame_from_message(message: pb.StreamClassifyResponse) -> Frame[Classification]:
    if message.WhichOneof("answer") == "response":
        return Frame(message.frame_id, classifications_from_response(message.response), None)
    return Frame(message.frame_id, None, _error_from_message(message.error))


def detection_frame_from_message(message: pb.StreamDetectResponse) -> Frame[Detections]:
    if message.WhichOneof("answer") == "response":
        return Frame(message.frame_id, detections_from_response(message.response), None)
    return Frame(message.frame_id, None, _error_from_message(message.error))


def _error_from_message(message: pb.FrameError) -> FerrymanError:
    return error_from_number(message.code, message.reason, message.message)


def message_from_model_facts(facts: ModelFacts) -> pb.ModelInfoResponse:
    return pb.ModelInfoResponse(
        model=pb.ModelRef(name=facts.name, version=facts.version),
        task=facts.task,
        labels=facts.labels,
        target=facts.target,
        runtime_version=facts.runtime_version,
        bundle_digest=facts.bundle_digest,
        checkpoint=facts.checkpoint,
        checkpoint_digest=facts.checkpoint_digest,
        parity=[
            pb.OutputParity(output=p.output, max_abs_error=p.max_abs_error, min_cosine=p.min_cosine, limit=p.limit)
            for p in facts.parity
        ],
        created=facts.created,
        canvases=[_message_from_size(canvas) for canvas in facts.canvases],
        certified=facts.certified,
    )


def model_facts_from_message(message: pb.ModelInfoResponse) -> ModelFacts:
    return ModelFacts(
        name=message.model.name,
        version=message.model.version,
        task=_task(message.task),
        labels=tuple(message.labels),
        target=message.target,
        runtime_version=message.runtime_version,
        bundle_digest=message.bundle_digest,
        checkpoint=message.checkpoint,
        checkpoint_digest=message.checkpoint_digest,
        parity=tuple(
            OutputParity(p.output, p.max_abs_error, p.min_cosine, p.limit if p.HasField("limit") else None)
            for p in message.parity
        ),
        created=message.created,
        canvases=tuple(_size_from_message(canvas) for canvas in message.canvases),
        certified=message.certified,
    )


def _task(name: str) -> Task:
    tasks: Sequence[Task] = get_args(Task)
    for task in tasks:
        if task == name:
            return task
    raise FerrymanError(f"the server names a task {name!r} that this client does not know; upgrade the client")


def _message_from_box(box_xyxy: tuple[float, float, float, float]) -> pb.Box:
    x1, y1, x2, y2 = box_xyxy
    return pb.Box(x1=x1, y1=y1, x2=x2, y2=y2)


def _box_from_message(message: pb.Box) -> tuple[float, float, float, float]:
    return message.x1, message.y1, message.x2, message.y2


def _message_from_size(size: tuple[int, int]) -> pb.Size:
    return pb.Size(width=size[0], height=size[1])


def _size_from_message(message: pb.Size) -> tuple[int, int]:
    return message.width, message.height
