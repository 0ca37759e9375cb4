"""`make bench-targets` on tiny models: who is in its table, what each one answers, and where the figures come from."""

import importlib
import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ferryman.bench import alone
from ferryman.bench.alone import Load, SessionCost, measure_cost
from ferryman.bench.turns import Ratio, time_runs
from ferryman.errors import EngineError, UsageError
from ferryman.parity import TOLERANCES
from ferryman.specs import Target
from ferryman_export.bench_targets import measure, profiles
from ferryman_export.bench_targets.contenders import BATCH, PRECISIONS, Contender, has_bf16
from ferryman_export.bench_targets.measure import Conditions, make_timed, measure_model, prepare
from ferryman_export.bench_targets.models import (
    MODELS,
    BenchModel,
    build_seeded,
    detr_processor,
    random_pictures,
    save_checkpoint,
    save_pictures,
)
from ferryman_export.bench_targets.ours import Ours
from ferryman_export.bench_targets.profiles import (
    OperatorTime,
    Profile,
    count_multiplications,
    make_profile,
    read_static,
    time_onnxruntime,
    time_openvino,
)
from ferryman_export.bench_targets.rows import (
    GOALS,
    Batch,
    Cost,
    Reached,
    Row,
    batch_name,
    judge,
    make_cost,
    make_rows,
    one_by_one_name,
)
from ferryman_export.bench_targets.stock import export_stock
from ferryman_export.bench_targets.tables import print_costs, print_profiles, print_speed
from ferryman_export.calibration import read_calibration
from ferryman_export.pipeline import ExportRequest, export

pytest.importorskip("openvino")
main = importlib.import_module("ferryman_export.bench_targets.__main__")
COMMAND = [sys.executable, "-m", "ferryman_export.bench_targets"]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def build_vit() -> Any:
    facts: dict[str, Any] = SMALL | {"image_size": 32, "patch_size": 8, "num_labels": 7}
    return build_seeded("ViTForImageClassification", lambda hf: hf.ViTConfig(**facts))


def build_detr() -> Any:
    resnet: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    sizes = {"encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    sizes |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_queries": 9, "num_labels": 5, "d_model": 32}

    def config(hf: Any) -> Any:
        backbone = hf.ResNetConfig(**resnet, out_features=["stage2"])
        return hf.DetrConfig(use_timm_backbone=False, backbone_config=backbone, **sizes)

    return build_seeded("DetrForObjectDetection", config)


VIT = BenchModel(
    build_vit, {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}, (32, 32)
)
DETR = BenchModel(build_detr, detr_processor(64, 96), (64, 96))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models need few processes, and a machine's best is not asked for here."""
    monkeypatch.setattr(alone, "_PROCESSES", 2)
    monkeypatch.setattr(profiles, "_PEAK_SIDES", (64,))


def conditions(*precisions: str, search: bool = True) -> Conditions:
    return Conditions(seconds=0.01, threads=1, precisions=precisions, calibration=None, search=search)


def ignore(stage: str, done: int, total: int) -> None:
    del stage, done, total


def first_answer(one: Contender, picture: Any) -> Any:
    """Logits, which come first out of everyone."""
    found: Any = one.run(picture)
    return np.asarray(found[0] if isinstance(found, tuple) else next(iter(found.values())))


@pytest.mark.parametrize("model", [VIT, DETR], ids=["ViT", "DETR"])
def test_everyone_answers_the_same_pictures(model: BenchModel, tmp_path: Path) -> None:
    with ExitStack() as opened:
        contenders = prepare("tiny", model, tmp_path, conditions("fp32"), ignore, opened)
        assert [one.variant for one in contenders] == ["PyTorch eager", "stock fp32", "openvino-cpu-fp32"]
        answers = [[first_answer(one, picture) for picture in one.inputs] for one in contenders]
    ours, floats = contenders[-1].inputs, contenders[0].inputs
    assert {(one["image"].dtype, one["image"].shape) for one in ours} == {(np.dtype(np.uint8), (1, *model.size, 3))}
    assert {(one.dtype, one.shape) for one in floats} == {(np.dtype(np.float32), (1, 3, *model.size))}
    assert not np.allclose(answers[0][0], answers[0][1], atol=1e-4)  # else the order would not be seen
    for one in answers[1:]:
        np.testing.assert_allclose(one, answers[0], atol=1e-4)


def test_the_command_prints_and_writes_a_row_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(MODELS, "tiny", VIT)
    threads = torch.get_num_threads()
    try:
        main.bench_targets(["tiny"], ["bf16", "fp32"], 0.01, 1, None, True, True, tmp_path / "figures.json")
    finally:
        torch.set_num_threads(threads)
    document = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    precisions = ["fp32", "bf16"] if has_bf16() else ["fp32"]
    names = ["PyTorch eager", *(f"stock {one}" for one in precisions), *(f"openvino-cpu-{one}" for one in precisions)]
    assert [row["variant"] for row in document["rows"]] == names
    assert {row["model"] for row in document["rows"]} == {"tiny"}
    assert all(row["runs"] >= document["rounds"] and row["median_ms"] > 0 for row in document["rows"])
    assert [row["goal"] for row in document["rows"]] == [None] * (1 + len(precisions)) + [1.05] * len(precisions)
    assert {"torch", "transformers", "openvino"} <= set(document["versions"])
    printed = capsys.readouterr().out.splitlines()
    for row in document["rows"]:
        assert any(row["variant"] in line and f"{row['median_ms']:.2f}" in line for line in printed)
    eager, *others = document["rows"]
    assert eager["profile"] is None
    assert all(sum(one["ms"] for one in row["profile"]["operators"]) > 0 for row in others)
    for row in document["rows"]:
        ours = row["variant"].startswith("openvino")
        assert (row["batch"] is not None) is (row["cost"] is not None) is ours
        if ours:
            assert row["batch"]["ms"] > 0
            assert row["cost"]["memory_goal_bytes"] == 2 * row["cost"]["weights_bytes"] + 150_000_000
            memory = row["cost"]["memory_bytes"]
            assert memory is None or row["cost"]["weights_bytes"] / 100 < memory < 1_000_000_000


@pytest.mark.parametrize("model", [VIT, DETR], ids=["ViT", "DETR"])
def test_multiplications_are_those_that_pytorch_counts(model: BenchModel, tmp_path: Path) -> None:
    """PyTorch's counter takes a multiplication and an addition for two, and does not look into fused attention."""
    module = model.build()
    module.set_attn_implementation("eager")
    pixels = np.zeros((1, 3, *model.size), np.float32)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        module(pixel_values=torch.from_numpy(pixels))
    graph = read_static(export_stock(module, pixels, tmp_path / "stock.onnx"), {"pixel_values": pixels})
    # A DETR's first queries are constants, and the export works out what they do to themselves.
    counts = counter.get_flop_counts()
    folded = sum(counts["DetrForObjectDetection.model.decoder.layers.0.self_attn"].values()) if model is DETR else 0
    assert count_multiplications(graph) * 2 == counter.get_total_flops() - folded > 0


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_time_is_told_by_operator(runtime: str, tmp_path: Path) -> None:
    pixels = np.zeros((1, 3, *VIT.size), np.float32)
    path = export_stock(VIT.build(), pixels, tmp_path / "stock.onnx")
    inputs = {"pixel_values": pixels}
    if runtime == "openvino":
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        runs, products = time_openvino(read_static(path, inputs), settings, inputs), "FullyConnected"
    else:
        runs, products = time_onnxruntime(path, 1, inputs), "Gemm"
    profile = make_profile(runs, 10, "fp32", 1)
    assert all(run[products, "fp32"] > 0 for run in runs)
    assert (products, "fp32") in {(one.kind, one.precision) for one in profile.operators}
    times = [one.ms for one in profile.operators]
    assert times == sorted(times, reverse=True)
    assert profile.peak_share(ms=10e3 / profile.peak) == pytest.approx(1)


def test_loading_is_measured_without_pytorch(tmp_path: Path) -> None:
    check = "import sys, ferryman.bench.alone; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
    save_checkpoint(VIT.build(), VIT.processor, tmp_path / "checkpoint")
    pictures = save_pictures(tmp_path / "pictures", random_pictures(3, VIT.size, seed=1))
    bundle = export(ExportRequest(str(tmp_path / "checkpoint"), tmp_path / "repository", "tiny", pictures))
    load = Load(
        path=bundle.file("model.onnx"), target=Target.parse("onnxruntime-cpu-fp32"), spec=bundle.spec, threads=1
    )
    cost = measure_cost(load)
    assert cost.weights_bytes == bundle.file("model.onnx").stat().st_size
    assert cost.load_s > 0
    with pytest.raises(EngineError, match=r"onnxruntime-cpu-fp32 can't be loaded by itself: .*absent\.onnx"):
        measure_cost(load.model_copy(update={"path": tmp_path / "absent.onnx"}))


@pytest.mark.nightly
def test_a_batch_holds_the_same_pictures(tmp_path: Path) -> None:
    with ExitStack() as opened:
        ours = prepare("tiny", DETR, tmp_path, conditions("fp32"), ignore, opened)[-1]
        together, alone = first_answer(ours, ours.batch), [first_answer(ours, picture) for picture in ours.inputs]
    assert together.shape[0] == BATCH
    np.testing.assert_allclose(together[: len(alone)], np.concatenate(alone), atol=1e-4)
    np.testing.assert_allclose(together[len(alone) :], np.concatenate(alone), atol=1e-4)


def test_int8_stands_beside_the_stock_recipes(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    rows = measure_model("tiny", VIT, tmp_path, conditions("int8", search=False), ignore)
    assert [row.variant for row in rows] == [
        "PyTorch eager",
        "stock int8",
        "openvino-cpu-int8",
        "onnxruntime-cpu-int8",
    ]
    assert [row.goal for row in rows] == [None, None, 1.0, 1.0]
    assert all("not proved" in row.note for row in rows[2:])


@pytest.mark.parametrize("within", [True, False], ids=["within tolerance", "out of tolerance"])
def test_a_variant_says_whether_it_holds(within: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target.parse("openvino-cpu-int8")
    limits = TOLERANCES["int8"].model_copy(update={"max_abs": {"logits": 10.0 if within else 0.0}})
    monkeypatch.setitem(TOLERANCES, "int8", limits)
    save_checkpoint(VIT.build(), VIT.processor, tmp_path / "checkpoint")
    pictures = save_pictures(tmp_path / "pictures", random_pictures(40, VIT.size, seed=1))
    bundle = export(ExportRequest(str(tmp_path / "checkpoint"), tmp_path / "repository", "tiny", pictures))
    calibration = read_calibration(pictures, bundle.spec, bundle.golden().inputs)
    inputs, _ = make_timed(bundle.spec)
    with ExitStack() as opened:
        ours = Ours(bundle, tmp_path, calibration, threads=1, search=True, progress=ignore)
        one = ours.load(target, inputs, opened)
        assert first_answer(one, inputs[0]).shape == (1, 7)
    assert one.note.startswith("out of tolerance") is not within
    assert ("every block in 8 bits" in one.note) is not within


def test_times_are_those_of_the_runs() -> None:
    seen: list[str] = []
    latencies = time_runs(seen.append, ["a", "b"], seconds=0.001, warmup=1)
    assert len(seen) == len(latencies) + 1
    assert seen[1:3] == ["a", "b"][: len(latencies)]


def test_rows_compare_within_a_precision() -> None:
    def contender(variant: str, precision: str) -> Contender:
        return Contender(variant, precision, len, [], batch=variant.startswith("openvino") or None)

    names = [("PyTorch eager", "fp32"), ("stock fp32", "fp32"), ("stock int8", "int8"), ("openvino-cpu-int8", "int8")]
    figures = {"PyTorch eager": 8.0, "stock fp32": 6.0, "stock int8": 3.0, "openvino-cpu-int8": 2.0}
    latencies = {name: [[figure, figure + 100, figure - 1]] * 12 for name, figure in figures.items()}
    latencies[batch_name("openvino-cpu-int8")] = [[16.0, 24.0, 40.0]] * 12
    latencies[one_by_one_name("openvino-cpu-int8")] = [[16.0]] * 12
    rows = make_rows("tiny", [contender(*one) for one in names], latencies)
    assert [row.median_ms for row in rows] == list(figures.values())
    assert [row.runs for row in rows] == [36] * 4
    assert [row.to_eager.value for row in rows] == [1, 8 / 6, 8 / 3, 4]
    assert [row.to_stock and row.to_stock.value for row in rows] == [None, None, None, 1.5]
    assert rows[-1].reached == "yes"
    batch = rows[-1].batch
    assert batch is not None
    assert (batch.ms, batch.to_one.value, batch.reached) == (3, 2 / 3, "no")
    assert rows[-1].slow
    assert [row.batch for row in rows[:-1]] == [None] * 3


@pytest.mark.parametrize(("low", "high", "reached"), [(1.05, 1.2, "yes"), (1.0, 1.04, "no"), (1.0, 1.1, "unclear")])
def test_a_goal_within_the_noise_is_not_reached(low: float, high: float, reached: str) -> None:
    assert judge(Ratio(value=1.05, low=low, high=high), 1.05) == reached


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UsageError, match=r"vit-bass .*vit-base"):
        main.bench_targets(["vit-bass"], None, 1.0, 1, None, True, False, None)


def test_all_precisions_have_a_goal() -> None:
    assert set(GOALS) == set(PRECISIONS)


ONE = Ratio(value=1, low=1, high=1)
PROFILE = Profile(
    operators=tuple(OperatorTime(kind=f"FullyConnectedQuantizedLegacy{n}", precision="int8", ms=9) for n in range(9)),
    multiplications=200_000_000_000,
    peak=3e12,
)


def make_row(variant: str, reached: Reached | None) -> Row:
    return Row(
        model="detr-r50-800x1066",
        variant=variant,
        precision=variant[-4:],
        median_ms=12345.67,
        runs=12,
        to_eager=ONE,
        to_stock=ONE,
        goal=1.05,
        reached=reached,
        note="out of tolerance",
    )


def test_what_is_slow_is_profiled_and_stock_beside_it() -> None:
    rows = [
        make_row("stock fp32", None),
        make_row("stock int8", None),
        make_row("openvino-cpu-fp32", "unclear"),
        make_row("openvino-cpu-int8", "yes"),
        make_row("onnxruntime-cpu-int8", "no"),
    ]
    contenders = [Contender(row.variant, row.precision, len, [0], profile=lambda _: PROFILE) for row in rows]
    some = ["stock fp32", "stock int8", "openvino-cpu-fp32", "onnxruntime-cpu-int8"]
    for everyone, expected in ((False, some), (True, [row.variant for row in rows])):
        found = measure.add_profiles(rows, contenders, everyone, ignore)
        assert [row.variant for row in found if row.profile is not None] == expected


@pytest.mark.parametrize(("load_s", "memory", "reached"), [(0.6, 350, ("yes", "yes")), (0.61, 351, ("no", "no"))])
def test_a_session_may_take_twice_its_weights_and_a_constant(
    load_s: float, memory: int, reached: tuple[str, str]
) -> None:
    found = SessionCost(load_s=load_s, first_ms=1.0, memory_bytes=memory * 1_000_000, weights_bytes=100_000_000)
    cost = make_cost(found, spare_mb=150, load_goal_s=0.6)
    assert (cost.load_reached, cost.memory_reached) == reached
    unknown = make_cost(found.model_copy(update={"memory_bytes": None}), 150, None)
    assert (unknown.load_reached, unknown.memory_reached) == (None, None)


def test_the_tables_fit_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    batch = Batch(ms=12345.67, to_one=ONE, reached="unclear")
    cost = Cost(load_s=12.34, load_goal_s=0.6, memory_bytes=10**10, memory_goal_bytes=10**9, weights_bytes=10**8)
    row = make_row("onnxruntime-cpu-int8", "unclear").model_copy(
        update={"batch": batch, "cost": cost, "profile": PROFILE}
    )
    for show in (print_speed, print_costs, print_profiles):
        show([row])
        table = capsys.readouterr().out.split("\n\n")[0].splitlines()
        assert len(table) > 1
        assert max(len(line.rstrip()) for line in table) <= 120
        assert any("onnxruntime-cpu-int8" in line and "detr-r50-800x1066" in line for line in table)


@pytest.mark.nightly
def test_interrupted_it_leaves_nothing(tmp_path: Path) -> None:
    command = [*COMMAND, "--model", "dinov2-small", "--precision", "fp32", "--threads", "1"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "write the ONNX graph" in line:
                assert len(list(tmp_path.glob("*bench-targets*"))) == 1
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in rest
    # ONNX Runtime and PyTorch keep files of their own there.
    assert [path.name for path in tmp_path.iterdir() if "bench-targets" in path.name or "tmp" in path.name] == []
