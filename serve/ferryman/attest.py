"""What an artefact computes in which precision, read from the artefact as it was built and not from its name."""

from typing import Annotated

from pydantic import Field

from ferryman.specs import Facts

# Of a variant's matrix products with weights, so many must run in the precision that its target names. The rest are
# islands: layers that are kept in floating point because the answers need it.
MIN_SHARE = 0.9
_ASTRAY = " on "
Count = Annotated[int, Field(ge=0)]


def astray(precision: str, place: str) -> str:
    """The name of a precision for what does not run on the target's device but on another: `fp32 on CPU`."""
    return f"{precision}{_ASTRAY}{place}"


class Attestation(Facts):
    """operators: number of each kind and precision, in the runtime's own words for kinds; see `astray` too
    products: number of matrix products with weights (linear layers, convolutions) per precision; the products of
    attention, of two activations, are not among them: runtimes hide them inside fused kernels
    """

    operators: dict[str, dict[str, Count]]
    products: dict[str, Count]

    def share(self, precision: str) -> float:
        """Of the products with weights, the part that runs in `precision`."""
        return self.products.get(precision, 0) / max(1, sum(self.products.values()))

    def find_failures(self, precision: str) -> list[str]:
        """A line when the artefact is not what its target says: fp32 all through, else `MIN_SHARE` of the products.

        No product may have gone astray, in any precision.
        """
        least = 1.0 if precision == "fp32" else MIN_SHARE
        nothing = precision == "fp32" and not self.products
        lost = any(_ASTRAY in name for name in self.products)
        if (nothing or self.share(precision) >= least) and not lost:
            return []
        found = ", ".join(f"{count} in {name}" for name, count in sorted(self.products.items())) or "none"
        if lost:
            return [f"some of its matrix products with weights fell back from the device: {found}"]
        return [
            f"{self.share(precision):.0%} of its matrix products with weights run in {precision} ({found}), "
            f"and {least:.0%} are due"
        ]


def attestation(found: list[tuple[str, str, bool]]) -> Attestation:
    """From one entry an operator: its kind, its precision, and whether it is a matrix product with weights."""
    operators: dict[str, dict[str, int]] = {}
    products: dict[str, int] = {}
    for kind, precision, product in found:
        counts = operators.setdefault(kind, {})
        counts[precision] = counts.get(precision, 0) + 1
        if product:
            products[precision] = products.get(precision, 0) + 1
    return Attestation(operators=dict(sorted(operators.items())), products=products)
