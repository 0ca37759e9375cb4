"""What ONNX Runtime says of the hardware that a provider runs on."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxruntime import OrtEpDevice


def name_hardware(provider: str) -> str:
    """The devices of a provider, such as `Qualcomm Hexagon NPU, NPU 4d4f:0041`; `unknown: ...` with the reason."""
    try:
        from onnxruntime import get_ep_devices
    except ImportError:
        return "unknown: this ONNX Runtime is older than 1.22, which is the first to name its devices"
    return describe_hardware(provider, get_ep_devices())


def describe_hardware(provider: str, devices: "Iterable[OrtEpDevice]") -> str:
    """See `name_hardware`; devices: all that ONNX Runtime has, each of a provider."""
    own = sorted({_describe(one) for one in devices if one.ep_name == provider})
    return "; ".join(own) or f"unknown: ONNX Runtime names no device of its {provider}"


def _describe(device: "OrtEpDevice") -> str:
    """The name that the system gives it, where it gives one, else its maker's; its kind and its PCI numbers."""
    hardware = device.device
    name = hardware.metadata.get("Description") or hardware.vendor or device.ep_vendor
    kind = str(hardware.type).rpartition(".")[2]
    driver = next((f", driver {value}" for key, value in _told(device) if "driver" in key.lower()), "")
    return f"{name}, {kind} {hardware.vendor_id:04x}:{hardware.device_id:04x}{driver}"


def _told(device: "OrtEpDevice") -> list[tuple[str, str]]:
    return sorted({**device.device.metadata, **device.ep_metadata}.items())
