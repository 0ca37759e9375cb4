"""Which variant is recommended, and how sure a ratio of speeds is."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ferryman.bench.advice import Advice, Measured, Proof, advise, measure_speed, summarize_proof
from ferryman.bench.advice_plot import plot_advice
from ferryman.bench.turns import Blocks, compare_speed, run_in_turn
from ferryman.bundle import Bundle
from ferryman.proof import read_reports

FLOAT, FAST_FLOAT, HALF, BYTE = (
    "onnxruntime-cpu-fp32",
    "openvino-cpu-fp32",
    "openvino-cpu-bf16",
    "openvino-cpu-int8",
)


def make_blocks(median_ms: float, seed: int, noise: float = 0.02, rounds: int = 12) -> Blocks:
    """Latencies around a median; each round is slowed down by something that hits all that run in it."""
    shared = np.random.default_rng(0).uniform(1, 1.5, rounds)
    own = np.random.default_rng(seed)
    return [list(median_ms * slow * own.normal(1, noise, 15)) for slow in shared]


def advise_on(accuracy: Mapping[str, float], **cases: tuple[float, float | None]) -> Advice:
    """cases: median in ms and error by the name of the target, with _ for -; an error above 0.5 is out of tolerance"""
    blocks = {
        name.replace("_", "-"): make_blocks(median, seed) for seed, (name, (median, _)) in enumerate(cases.items(), 1)
    }
    first = next(iter(blocks.values()))
    measured: list[Measured] = []
    for name, (_, error) in cases.items():
        median, runs, ratio = measure_speed(blocks[name.replace("_", "-")], first)
        passed = error is None or error <= 0.5
        proof = Proof(measured="here", passed=passed, error=error, top1_agreement=1.0, matched_detections=None)
        target = name.replace("_", "-")
        facts = {"target": target, "median_ms": median, "runs": runs, "ratio": ratio, "proof": proof}
        facts |= {"load_s": 0.1, "size_bytes": 1, "accuracy": accuracy.get(target)}
        measured.append(Measured.model_validate(facts))
    return advise(measured, blocks)


def test_speed_is_not_bought_with_accuracy() -> None:
    """Within tolerance all of them; int8 is the fastest, and three pictures in a hundred are wrong for it."""
    accuracy = {FLOAT: 0.815, HALF: 0.82, BYTE: 0.79}
    cases = {"onnxruntime_cpu_fp32": (20.0, 1e-6), "openvino_cpu_bf16": (8.0, 1e-2), "openvino_cpu_int8": (5.0, 3e-2)}
    advice = advise_on(accuracy, **cases)
    assert advice.recommended == HALF
    assert re.search(r"int8 is not worth it here: .*, and its accuracy is 0.790 against 0.820$", advice.reasons[1])
    assert advise_on({**accuracy, BYTE: 0.811}, **cases).recommended == BYTE
    assert advise_on({FLOAT: 0.815, HALF: 0.82}, **cases).recommended == BYTE


def test_what_is_faster_by_enough_is_recommended() -> None:
    advice = advise_on(
        {},
        onnxruntime_cpu_fp32=(20, 1e-6),
        openvino_cpu_fp32=(16, 2e-6),
        openvino_cpu_bf16=(8, 1e-2),
        openvino_cpu_int8=(5, 3e-2),
    )
    assert advice.recommended == BYTE
    assert advice.front == (BYTE, HALF, FAST_FLOAT, FLOAT)
    assert len(advice.reasons) == 1
    assert advice.reasons[0].startswith(f"Use {BYTE}: within tolerance, and 4.0")


# Median and error of each; what is recommended; what is said of the one that is not.
DECLINED: dict[str, tuple[dict[str, tuple[float, float]], str, str]] = {
    "int8 hardly faster than bf16": (
        {"openvino_cpu_fp32": (20, 1e-6), "openvino_cpu_bf16": (8, 1e-2), "openvino_cpu_int8": (7.6, 3e-2)},
        HALF,
        f"int8 is not worth it here: {BYTE} is 1.0[3-7] times as fast .* as {HALF}: less than the 1.1 times that pay "
        "for its error of 0.03 against 0.01",
    ),
    "int8 as fast as fp32": (
        {"openvino_cpu_fp32": (20, 1e-6), "openvino_cpu_int8": (20, 3e-2)},
        FAST_FLOAT,
        f"int8 is not worth it here: {BYTE} is (1.00|0.99|1.01) times .*: no difference beyond the noise",
    ),
    "bf16 slower": (
        {"openvino_cpu_fp32": (20, 1e-6), "openvino_cpu_bf16": (30, 3e-2)},
        FAST_FLOAT,
        f"bf16 is not worth it here: {HALF} is 0.6[5-8] times as fast .* as {FAST_FLOAT}: slower",
    ),
    "another fp32 slower": (
        {"onnxruntime_cpu_fp32": (20, 2e-6), "openvino_cpu_fp32": (25, 1e-6)},
        FLOAT,
        f"^{FAST_FLOAT} is 0.[78]\\d times as fast .* as {FLOAT}: slower",
    ),
    "int8 out of tolerance": (
        {"openvino_cpu_fp32": (20, 1e-6), "openvino_cpu_int8": (4, 0.9)},
        FAST_FLOAT,
        f"{BYTE} is out of tolerance here, error 0.9",
    ),
}


@pytest.mark.parametrize(("cases", "recommended", "reason"), DECLINED.values(), ids=DECLINED)
def test_what_is_not_worth_it(cases: dict[str, tuple[float, float]], recommended: str, reason: str) -> None:
    advice = advise_on({}, **cases)
    assert advice.recommended == recommended
    assert recommended in advice.reasons[0]
    assert len(advice.reasons) == 2
    assert re.search(reason, advice.reasons[1]), advice.reasons[1]


def test_an_fp32_that_is_a_little_faster_costs_nothing() -> None:
    assert advise_on({}, onnxruntime_cpu_fp32=(20, 1e-6), openvino_cpu_fp32=(18.6, 2e-6)).recommended == FAST_FLOAT


def test_nothing_that_may_be_used() -> None:
    advice = advise_on({}, openvino_cpu_bf16=(20, 0.9), openvino_cpu_int8=(4, 0.8))
    assert (advice.recommended, advice.front, len(advice.reasons)) == (None, (), 2)


def test_a_ratio_holds_what_it_should() -> None:
    """Over many repeated measurements the true ratio lies in the interval about as often as it says."""
    held = 0
    for seed in range(200):
        ratio = compare_speed(make_blocks(10, 2 * seed + 1, 0.1), make_blocks(8, 2 * seed + 2, 0.1))
        assert ratio.low <= ratio.value <= ratio.high
        held += ratio.low <= 1.25 <= ratio.high
    assert 0.88 <= held / 200 <= 1
    alone = compare_speed([[3.0]], [[1.5]])
    assert (alone.low, alone.value, alone.high) == (2, 2, 2)


def test_turns() -> None:
    """Every second round goes backwards, each thing gets its share of the time, and the blocks stay apart."""
    taken: list[tuple[str, float]] = []
    done: list[tuple[int, int]] = []

    def measure(name: str) -> Callable[[float], list[int]]:
        def take(seconds: float) -> list[int]:
            taken.append((name, seconds))
            return [len(taken)]

        return take

    names = "abc"
    blocks = run_in_turn({name: measure(name) for name in names}, 6, 3, lambda *count: done.append(count))
    assert "".join(name for name, _ in taken) == "abccbaabc"
    assert {seconds for _, seconds in taken} == {2}
    assert blocks == {"a": [[1], [6], [7]], "b": [[2], [5], [8]], "c": [[3], [4], [9]]}
    assert done == [(number, 9) for number in range(9)]


def test_the_proof_of_a_report(toy_repository: Path) -> None:
    (report,) = read_reports(Bundle.open(toy_repository / "toy-detector"))
    proof = summarize_proof([report], "at export")
    assert proof is not None
    limited = [error.max_abs for error in report.errors if error.output in ("boxes", "scores")]
    assert proof.error == max(limited)  # logits, whose scale is the model's own, are not among them
    assert (proof.passed, proof.top1_agreement, proof.matched_detections) == (True, None, 1.0)
    assert summarize_proof([], "here") is None
    silent = summarize_proof([report.model_copy(update={"errors": ()})], "here")
    assert silent is not None
    assert (silent.passed, silent.error) == (True, None)  # not 0, which nobody has measured


def test_an_unknown_error_is_the_last_to_be_taken() -> None:
    advice = advise_on({}, openvino_cpu_fp32=(20, 1e-6), openvino_cpu_bf16=(19.5, None), openvino_cpu_int8=(19.6, 3e-2))
    assert advice.recommended == FAST_FLOAT
    assert advice.front == (BYTE, FAST_FLOAT)
    assert [reason.split(" is ")[0] for reason in advice.reasons[1:]] == ["int8", "bf16"]
    assert advice.reasons[2].endswith("that pay for its error of unknown against 1e-06")


@pytest.mark.parametrize("error", [0, -1, 1.7e308, float("inf"), None], ids=str)
def test_the_picture_of_an_odd_error(error: float | None, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    advice = advise_on({}, openvino_cpu_fp32=(20, 1e-3), openvino_cpu_int8=(10, 0.0))
    odd = advice.variants[1].proof
    assert odd is not None
    variants = (
        advice.variants[0],
        advice.variants[1].model_copy(update={"proof": odd.model_copy(update={"error": error})}),
    )
    plot_advice(advice.model_copy(update={"variants": variants}), "two", tmp_path / "two.png")
    with Image.open(tmp_path / "two.png") as drawn:
        assert len(drawn.getcolors(1 << 20) or ()) > 10
