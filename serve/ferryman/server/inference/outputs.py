"""From a model's outputs to an answer: which are wanted, as what, and where to."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferryman.errors import TensorError, UsageError
from ferryman.inference import grpc_service_pb2 as pb
from ferryman.results import Outputs
from ferryman.server.inference.parameters import read_number
from ferryman.server.inference.shared_memory import Place, Regions, place_from_parameters
from ferryman.server.inference.tensors import BYTES, DATATYPES
from ferryman.specs import ModelSpec


@dataclass(frozen=True)
class Wanted:
    """An output that is asked for.

    classes: how many best classes to answer instead of the values, None for the values
    place: where to write it, None for the message
    """

    name: str
    classes: int | None = None
    place: Place | None = None


@cache
def _all_outputs(names: tuple[str, ...]) -> tuple[Wanted, ...]:
    return tuple(map(Wanted, names))


def wanted_from_request(request: pb.ModelInferRequest, spec: ModelSpec, regions: Regions) -> Sequence[Wanted]:
    """The outputs that a request asks for, all in their order when it names none.

    Raises UsageError for an unknown output, one that is named twice, classes of what has none, and shared memory that
    is not there.
    """
    if not request.outputs:
        return _all_outputs(spec.output_names)
    wanted: dict[str, Wanted] = {}
    for output in request.outputs:
        name = output.name
        if name not in spec.output_names:
            raise UsageError(
                f"there is no output {name[:100]!r}; the model answers {', '.join(spec.output_names)}", "outputs"
            )
        if name in wanted:
            raise UsageError(f"output {name} is asked for twice", "outputs")
        classes = read_number(output.parameters, "classification") if output.parameters else None
        if classes is not None and (classes < 1 or spec.task != "classification" or name == "attention"):
            raise UsageError(
                f"output {name} can't be answered as {classes} classes; the logits and probabilities of a classifier "
                "can, as 1 or more",
                "outputs",
            )
        place = place_from_parameters(output.parameters) if output.parameters else None
        if place is not None:
            regions.check(place)
        wanted[name] = Wanted(name, classes, place)
    return list(wanted.values())


def join_images(outputs: Sequence[Outputs], name: str) -> NDArray[Any]:
    """One output of all images as a batch. Raises TensorError when it has another shape for some of them."""
    if len(outputs) == 1:
        return outputs[0][name]
    arrays = [one[name] for one in outputs]
    if len({array.shape for array in arrays}) > 1:
        raise TensorError(
            f"output {name} has different shapes for these pictures, which go to canvases of different sizes; ask for "
            "one picture at a time"
        )
    return np.concatenate(arrays)


def add_output(
    response: pb.ModelInferResponse, wanted: Wanted, array: NDArray[Any], spec: ModelSpec, regions: Regions
) -> None:
    """Appends an output and its contents to an answer.

    Raises UsageError for an output that its place can't hold.
    """
    if wanted.classes is None:
        datatype, shape = DATATYPES[spec.output_dtypes[wanted.name]], array.shape
        data = array.tobytes()
    else:
        rows = [best_classes(row, spec.labels, wanted.classes) for row in array]
        datatype, shape = BYTES, (len(rows), len(rows[0]))
        data = join_elements([element for row in rows for element in row])
    output = response.outputs.add(name=wanted.name, datatype=datatype, shape=shape)
    if wanted.place is not None:
        regions.write(wanted.place, data)
        output.parameters["shared_memory_region"].string_param = wanted.place.region
        output.parameters["shared_memory_byte_size"].int64_param = len(data)
        if wanted.place.offset:
            output.parameters["shared_memory_offset"].int64_param = wanted.place.offset
        data = b""  # an entry all the same: clients find an output's contents by its number
    response.raw_output_contents.append(data)


def best_classes(values: NDArray[Any], labels: Sequence[str], count: int) -> list[bytes]:
    """`value:index:label` of the highest values, best first, at most all; values: (classes,)."""
    best = np.argsort(-values, kind="stable")[:count]
    return [f"{values[index]:f}:{index}:{labels[index]}".encode() for index in best]


def join_elements(elements: Sequence[bytes]) -> bytes:
    """The contents of BYTES: each element after its length in four bytes."""
    return b"".join(part for element in elements for part in (len(element).to_bytes(4, "little"), element))
