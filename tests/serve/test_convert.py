"""Answers survive the way over the wire, the empty ones included."""

from dataclasses import replace

import numpy as np
import pytest

from ferryman import convert
from ferryman.answers import Answer, Answerer, Frame, ModelFacts, OutputParity
from ferryman.errors import FerrymanError, ImageError
from ferryman.masks import Mask
from ferryman.predictor import Timings
from ferryman.results import Classification, Detection, Detections, Embedding, Prediction, Segment, Segmentation
from ferryman.v1 import vision_pb2 as pb

# Values that float32 holds exactly.
CLASSIFICATION = Classification((640, 480), (224, 192), (Prediction("cat", 3, 0.5), Prediction("chat é", 0, 0.25)))
DETECTIONS = Detections((1, 30000), (800, 1066), (Detection("dog", 7, 1.0, (0.5, 1.25, 30.0, 29999.5)),))
SEGMENTATION = Segmentation(
    (3, 2),
    (7, 6),
    (
        Segment("sky", 2, 0.5, (0.0, 0.0, 2.0, 2.0), Mask((2, 3), (0, 4, 2))),
        Segment("chat é", 0, 0.25, (2.0, 1.0, 3.0, 2.0), Mask((2, 3), (5, 1))),
    ),
)
TIMINGS = Timings(0.1, 0.2, 0.3, 0.4, 0.5, 1.6)
ANSWERER = Answerer("vit", 12, "onnxruntime-cpu-fp32", "ab" * 32)
FACTS = ModelFacts(
    name="vit",
    version=12,
    task="embedding",
    labels=(),
    target="onnxruntime-cpu-fp32",
    runtime_version="1.20",
    bundle_digest="ab" * 32,
    checkpoint="vit-digits",
    checkpoint_digest="cd" * 32,
    parity=(OutputParity("cls", 1e-6, 0.999, 1e-4), OutputParity("patches", 0.0, 1.0, None)),
    created="2025-01-01",
    canvases=((224, 192), (192, 224)),
    certified="2025-01-31T12:00:00+00:00",
)


@pytest.mark.parametrize("result", [CLASSIFICATION, Classification((1, 1), (2, 3), ())], ids=["some", "none"])
def test_classifications(result: Classification) -> None:
    message = convert.message_from_classification(result)
    assert convert.classification_from_message(pb.Classification.FromString(message.SerializeToString())) == result


@pytest.mark.parametrize("result", [DETECTIONS, Detections((1, 1), (2, 3), ())], ids=["some", "none"])
def test_detections(result: Detections) -> None:
    message = convert.message_from_detections(result)
    assert convert.detections_from_message(pb.Detections.FromString(message.SerializeToString())) == result


@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 1, 1), (0, 0, 4)])
def test_embeddings(shape: tuple[int, int, int]) -> None:
    random = np.random.default_rng(0)
    cls = random.normal(size=shape[2]).astype(np.float32)
    patches = random.normal(size=shape).astype(np.float32)
    message = convert.message_from_embedding(Embedding((9, 8), (7, 6), cls, patches))
    found = convert.embedding_from_message(pb.Embedding.FromString(message.SerializeToString()))
    assert (found.size, found.canvas) == ((9, 8), (7, 6))
    assert found.patches.dtype == np.float32
    np.testing.assert_array_equal(found.cls, cls)
    np.testing.assert_array_equal(found.patches, patches)


@pytest.mark.parametrize("result", [SEGMENTATION, Segmentation((1, 1), (2, 3), ())], ids=["some", "none"])
def test_segmentations(result: Segmentation) -> None:
    message = convert.message_from_segmentation(result)
    assert [segment.area for segment in message.segments] == [segment.mask.area for segment in result.segments]
    assert convert.segmentation_from_message(pb.Segmentation.FromString(message.SerializeToString())) == result


def test_mask_of_another_size() -> None:
    message = convert.message_from_segmentation(SEGMENTATION)
    message.size.width = 4
    with pytest.raises(FerrymanError, match="the server's answer can't be read: runs of 6 pixels in all are no mask"):
        convert.segmentation_from_message(message)


def test_model_facts() -> None:
    message = convert.message_from_model_facts(FACTS)
    found = convert.model_facts_from_message(pb.ModelInfoResponse.FromString(message.SerializeToString()))
    assert found == FACTS


def test_a_task_of_a_newer_server() -> None:
    message = convert.message_from_model_facts(FACTS)
    message.task = "pose"
    with pytest.raises(FerrymanError, match="'pose' that this client does not know; upgrade the client"):
        convert.model_facts_from_message(message)


def test_frames() -> None:
    response = pb.DetectResponse(
        results=[convert.message_from_detections(DETECTIONS)],
        timings=convert.message_from_timings(TIMINGS),
        answerer=convert.message_from_answerer(ANSWERER),
    )
    found = convert.detection_frame_from_message(pb.StreamDetectResponse(frame_id=-5, response=response))
    assert found == Frame(-5, Answer((DETECTIONS,), TIMINGS, ANSWERER), None)
    assert found.result == DETECTIONS
    error = convert.message_from_frame_error(ImageError("bad"))
    failed = convert.classification_frame_from_message(pb.StreamClassifyResponse(frame_id=6, error=error))
    with pytest.raises(ImageError, match="bad"):
        _ = failed.result
    with pytest.raises(FerrymanError):  # neither: a server that is newer, or broken
        _ = convert.detection_frame_from_message(pb.StreamDetectResponse(frame_id=7)).result


@pytest.mark.parametrize("encode_ms", [None, 0.0, 0.7])
def test_timings(encode_ms: float | None) -> None:
    """A server that does not tell what encoding took is not taken for one that took no time."""
    timings = replace(TIMINGS, encode_ms=encode_ms)
    message = pb.Timings.FromString(convert.message_from_timings(timings).SerializeToString())
    assert convert.timings_from_message(message) == timings
