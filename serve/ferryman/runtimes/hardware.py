"""What ONNX Runtime says of the hardware that a provider runs on."""

from collections.abc import Iterable, Mapping
from typing import Protocol


class Hardware(Protocol):
    """ONNX Runtime's `OrtHardwareDevice`; type: such as `OrtHardwareDeviceType.NPU`"""

    type: object
    vendor: str
    vendor_id: int
    device_id: int
    metadata: Mapping[str, str]


class ProviderDevice(Protocol):
    """ONNX Runtime's `OrtEpDevice`: hardware that a provider can run on."""

    ep_name: str
    ep_vendor: str
    ep_metadata: Mapping[str, str]
    device: Hardware


def name_hardware(provider: str) -> str:
    """The devices of a provider, such as `Qualcomm Hexagon NPU, NPU 4d4f:0041`; `unknown: ...` with the reason."""
    import onnxruntime

    find = vars(onnxruntime).get("get_ep_devices")
    if find is None:
        return "unknown: this ONNX Runtime is older than 1.22, which is the first to name its devices"
    devices: Iterable[ProviderDevice] = find()
    own = sorted({_describe(one) for one in devices if one.ep_name == provider})
    return "; ".join(own) or f"unknown: ONNX Runtime names no device of its {provider}"


def _describe(device: ProviderDevice) -> str:
    """The name that the system gives it, where it gives one, else its maker's; kind, PCI numbers, driver."""
    hardware = device.device
    name = hardware.metadata.get("Description") or hardware.vendor or device.ep_vendor
    kind = str(hardware.type).rpartition(".")[2]
    told = sorted({**hardware.metadata, **device.ep_metadata}.items())
    driver = next((f", driver {value}" for key, value in told if "driver" in key.lower()), "")
    return f"{name}, {kind} {hardware.vendor_id:04x}:{hardware.device_id:04x}{driver}"
