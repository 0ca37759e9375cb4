"""A certificate is valid for one bundle, one target, one runtime and one device, and for nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ferryman.bundle import Bundle
from ferryman.certificates import certify, check_certificate
from ferryman.errors import CertificateError, EngineError, ParityError
from ferryman.proof import prove_target, read_reports
from ferryman.runtimes import RUNTIMES
from ferryman.server.loading import load_model
from ferryman.specs import Target

from .toy import TARGET, add_toy_bundle, change_golden, reseal, shift_boxes


@pytest.fixture
def bundle(folder: Path) -> Bundle:
    return Bundle.open(folder)


@pytest.fixture
def place(bundle: Bundle) -> Path:
    return bundle.path / "certificates" / f"{TARGET}.json"


Edit = Callable[[dict[str, Any]], object]


def edit(place: Path, change: Edit) -> None:
    facts = json.loads(place.read_text(encoding="utf-8"))
    change(facts)
    place.write_text(json.dumps(facts), encoding="utf-8")


def test_what_an_export_leaves_is_valid_here(bundle: Bundle) -> None:
    found = check_certificate(bundle, TARGET)
    assert (found.bundle, found.target, found.passed) == ("toy-detector/1", str(TARGET), True)
    assert found.accelerator == ""
    assert load_model(bundle.path).certificate == found


# What differs in the certificate; what is said of it.
OTHERS: dict[str, tuple[Edit, str]] = {
    "another processor": (lambda facts: facts["device"].update(cpu="Abacus 3"), "another processor, Abacus 3 and not"),
    "no vector unit": (lambda facts: facts["device"].update(cpu_features=[]), "another processor's features, none and"),
    "another machine": (lambda facts: facts["device"].update(machine="mips"), "another machine, mips and not"),
    "an accelerator": (
        lambda facts: facts.update(accelerator="Arc, 1.2"),
        "another accelerator, Arc, 1.2 and not none",
    ),
    "another runtime": (
        lambda facts: facts["reports"][0].update(runtime_version="0.9"),
        "another onnxruntime version, 0.9 and not",
    ),
    "another bundle": (lambda facts: facts.update(bundle_digest="ab" * 32), "another bundle, abababababab and not"),
    "another file": (lambda facts: facts.update(variant_digests=["cd" * 32]), "another variant, cdcdcd"),
    "another target": (lambda facts: facts["reports"][0].update(target="a-b-fp16"), "another target, a-b-fp16 and not"),
    "a failure": (
        lambda facts: (facts.update(passed=False), facts["reports"][0].update(failures=["a box is off"])),
        "it was found out of tolerance here",
    ),
    "a failure that passed": (
        lambda facts: facts["reports"][0].update(failures=["a box is off"]),
        "holds none that this version can read: passed is True, and the reports say otherwise",
    ),
    "a pass that failed": (lambda facts: facts.update(passed=False), "passed is False, and the reports say otherwise"),
    "no error below zero": (
        lambda facts: facts["reports"][0]["errors"][1].update(max_abs=-1),
        r"can read: reports\.0\.errors\.1\.max_abs: Input should be greater than or equal to 0",
    ),
    "no facts": (lambda facts: facts.clear(), "holds none that this version can read: bundle: Field required"),
}


@pytest.mark.parametrize(("change", "message"), OTHERS.values(), ids=OTHERS)
def test_a_certificate_of_something_else(bundle: Bundle, place: Path, change: Edit, message: str) -> None:
    edit(place, change)
    with pytest.raises(CertificateError, match=message) as caught:
        check_certificate(bundle, TARGET)
    assert str(caught.value).endswith(f"prove it with: ferryman verify {bundle.path} --target {TARGET}")
    assert "\n" not in str(caught.value)
    model = load_model(bundle.path, certify=True)
    model.close()
    assert check_certificate(bundle, TARGET) == model.certificate


def test_speed_and_python_do_not_matter(bundle: Bundle, place: Path) -> None:
    edit(place, lambda facts: facts["device"].update(cores=999, memory_bytes=None, python="2.7", system="Linux 9"))
    assert check_certificate(bundle, TARGET).device.cores == 999


def test_a_changed_bundle(bundle: Bundle) -> None:
    """Whatever was changed, and sealed again with right digests."""
    reseal(bundle.path, created="2026-01-01T00:00:00+00:00")
    with pytest.raises(CertificateError, match="made for another bundle"):
        check_certificate(Bundle.open(bundle.path), TARGET)


def test_another_runtime_version(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RUNTIMES["onnxruntime"], "version", lambda: "99.0")
    with pytest.raises(CertificateError, match=r"onnxruntime version, .* and not 99\.0"):
        check_certificate(bundle, TARGET)


def test_none_at_all(bundle: Bundle, place: Path, tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match=f"there is none; .* --certificates '{tmp_path}/a b'"):
        check_certificate(bundle, TARGET, tmp_path / "a b")
    place.unlink()
    place.mkdir()
    with pytest.raises(CertificateError, match="can't be read: Is a directory"):
        check_certificate(bundle, TARGET)


def test_a_folder_for_the_certificates_of_all(folder: Path, tmp_path: Path) -> None:
    """Two bundles of one name and version don't meet in it; the bundles' own are not looked at."""
    other = add_toy_bundle(tmp_path / "others", "toy-detector", samples=3)
    place = tmp_path / "proofs"
    bundles = [Bundle.open(folder), other]
    for bundle in bundles:
        with pytest.raises(CertificateError, match="there is none"):
            load_model(bundle.path, certificates=place)
        certify(bundle, prove_target(bundle, TARGET), place)
    for bundle in bundles:
        shutil.rmtree(bundle.path / "certificates")
        load_model(bundle.path, certificates=place).close()
    assert sorted(one.name for one in place.iterdir()) == sorted(bundle.digest[:16] for bundle in bundles)


def test_certifying_on_read_only_storage(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    """The proof counts for this process, and the log tells that it is not kept."""
    shutil.rmtree(bundle.path / "certificates")
    (bundle.path / "certificates").touch()  # no folder can be made there, not even by root
    load_model(bundle.path, certify=True).close()
    assert "certificate can't be kept" in caplog.text
    with pytest.raises(CertificateError, match="there is none"):
        load_model(bundle.path)


def test_what_fails_is_certified_as_failing(bundle: Bundle, place: Path) -> None:
    change_golden(bundle.path, shift_boxes)
    with pytest.raises(ParityError, match="is out of tolerance: output boxes"):
        load_model(bundle.path, certify=True)
    assert json.loads(place.read_text(encoding="utf-8"))["passed"] is False
    with pytest.raises(CertificateError, match="found out of tolerance here"):
        load_model(bundle.path)


def test_reports_that_prove_something_else(bundle: Bundle) -> None:
    (report,) = read_reports(bundle)
    for reports in ([report, report], [report.model_copy(update={"size": (1, 1)})]):
        with pytest.raises(ValueError, match="expected one of onnxruntime-cpu-fp32 for each size"):
            certify(bundle, reports)


def test_a_target_that_can_not_run_here(tmp_path: Path) -> None:
    elsewhere = Target.parse("onnxruntime-fridge-fp32")
    bundle = add_toy_bundle(tmp_path, "toy-detector", targets=(elsewhere, TARGET))
    with pytest.raises(EngineError, match="onnxruntime-fridge-fp32 can't run here: this version of Ferryman drives"):
        load_model(bundle.path, certify=True)
    load_model(bundle.path, str(TARGET)).close()


def test_of_what_was_loaded_where_that_is_not_the_file(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that was built again since was never proved."""
    runtime = RUNTIMES[TARGET.runtime]
    monkeypatch.setattr(runtime, "loaded_digest", lambda path, target, sha256: "ab" * 32)
    certify(bundle, prove_target(bundle, TARGET))
    assert check_certificate(bundle, TARGET).variant_digests == ("ab" * 32,)
    monkeypatch.setattr(runtime, "loaded_digest", lambda path, target, sha256: "cd" * 32)
    with pytest.raises(CertificateError, match=r"another variant, abab.* and not cdcd"):
        check_certificate(bundle, TARGET)
