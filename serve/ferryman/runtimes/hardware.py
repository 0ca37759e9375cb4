"""What ONNX Runtime says of the hardware that a provider runs on."""

from collections.abc import Iterable, Mapping
from typing import Protocol


# ONNX Runtime's own classes, OrtHardwareDevice and OrtEpDevice, come without types.
class HardwareDevice(Protocol):
    type: object
    vendor: str
    vendor_id: int
    device_id: int
    metadata: Mapping[str, str]


class ProviderDevice(Protocol):
    ep_name: str
    ep_vendor: str
    ep_metadata: Mapping[str, str]
    device: HardwareDevice


def name_hardware(provider: str) -> str:
    """The devices of a provider, such as `Qualcomm Hexagon NPU, NPU 4d4f:0041`; `unknown: ...` with the reason."""
    import onnxruntime

    try:
        devices = onnxruntime.get_ep_devices()
    except AttributeError:
        return "unknown: this ONNX Runtime is older than 1.22, which is the first to name its devices"
    return describe_hardware(provider, devices)


def describe_hardware(provider: str, devices: Iterable[ProviderDevice]) -> str:
    """See `name_hardware`; devices: all that ONNX Runtime has, each of a provider."""
    own = sorted({_describe(one) for one in devices if one.ep_name == provider})
    return "; ".join(own) or f"unknown: ONNX Runtime names no device of its {provider}"


def _describe(device: ProviderDevice) -> str:
    """The name that the system gives it, where it gives one, else its maker's; its kind and its PCI numbers."""
    hardware = device.device
    name = hardware.metadata.get("Description") or hardware.vendor or device.ep_vendor
    kind = str(hardware.type).rpartition(".")[2]
    driver = next((f", driver {value}" for key, value in _told(device) if "driver" in key.lower()), "")
    return f"{name}, {kind} {hardware.vendor_id:04x}:{hardware.device_id:04x}{driver}"


def _told(device: ProviderDevice) -> list[tuple[str, str]]:
    return sorted({**device.device.metadata, **device.ep_metadata}.items())
