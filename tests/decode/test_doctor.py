"""What the doctor says about a machine, on machines made of files and on this one."""

import json
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

import qspec_kernels
from qspec_decode import doctor, machine
from qspec_decode.cli import app
from qspec_kernels.backends import torch as torch_backend
from tests.gpu.devices import Device, pretended


def make_machine(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    """A root directory with a process's control groups and their files."""
    for name, text in {"proc/self/cgroup": cgroup, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("cgroup", "files", "quota"),
    [
        ("0::/", {"sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        ("0::/", {"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        # an outer group's limit holds for the inner ones
        (
            "0::/a/b",
            {"sys/fs/cgroup/a/cpu.max": "150000 100000", "sys/fs/cgroup/a/b/cpu.max": "400000 100000"},
            1.5,
        ),
        # inside a container the path is the host's
        ("0::/docker/0123", {"sys/fs/cgroup/cpu.max": "100000 100000"}, 1.0),
        (
            "4:cpu,cpuacct:/x",
            {
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "25000",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000",
            },
            0.25,
        ),
        (
            "4:cpu,cpuacct:/x",
            {"sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000"},
            None,
        ),
        ("3:memory:/x", {"sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "1"}, None),
    ],
)
def test_control_groups_limit_the_usable_cpus(
    tmp_path: Path, cgroup: str, files: dict[str, str], quota: float | None
) -> None:
    found = machine.usable_cpus(make_machine(tmp_path, cgroup, files))
    assert found["cgroup_quota"] == quota
    if quota is not None and quota <= 1:
        assert found["count"] == 1
    assert 1 <= found["count"] <= found["online"]


def test_a_machine_without_these_files_has_its_cpus(tmp_path: Path) -> None:
    found = machine.usable_cpus(tmp_path)
    assert found["cgroup_quota"] is None
    assert found["count"] == min(found["online"], found["affinity"])
    assert machine.total_bytes(tmp_path) is None
    assert machine.available_bytes(tmp_path) is None


MEMINFO = {"proc/meminfo": "MemTotal:  9 kB\nMemAvailable:  8 kB\nHugePages_Total:  0"}
NESTED = {
    f"sys/fs/cgroup/{path}": text
    for path, text in {
        "memory.stat": "anon 9",
        "a/memory.max": "5000",
        "a/memory.current": "2000",
        "a/memory.stat": "anon 1500\ninactive_file 300",
        "a/b/memory.max": "max",
        "a/b/memory.current": "1000",
        "a/b/c/memory.max": "7000",
        "a/b/c/memory.current": "500",
    }.items()
}
VERSION_1 = {
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "9000",
    "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "4000",
    "sys/fs/cgroup/memory/x/memory.usage_in_bytes": "4100",
    "sys/fs/cgroup/memory/x/memory.stat": "inactive_file 1\ntotal_inactive_file 600",
}


@pytest.mark.parametrize(
    ("cgroup", "files", "available"),
    [
        ("0::/", {}, 8192),
        # an outer group's limit holds for the inner ones, and files read through it can be dropped
        ("0::/a/b/c", NESTED, 3300),
        ("0::/a/b/c", NESTED | {"sys/fs/cgroup/a/b/c/memory.max": "3000"}, 2500),
        ("0::/docker/0123", {"sys/fs/cgroup/memory.max": "900", "sys/fs/cgroup/memory.current": "1"}, 899),
        ("4:memory:/x", VERSION_1, 500),
        ("4:memory:/x", VERSION_1 | {"sys/fs/cgroup/memory/x/memory.stat": ""}, 0),
        ("4:cpu:/x", VERSION_1, 8192),
    ],
)
def test_available_memory_is_the_least_of_all_limits(
    tmp_path: Path, cgroup: str, files: dict[str, str], available: int
) -> None:
    root = make_machine(tmp_path, cgroup, MEMINFO | files)
    assert machine.available_bytes(root) == available
    assert machine.total_bytes(root) == 9 * 1024


def test_only_flags_that_kernels_ask_for_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qspec_kernels, "cpu_field", lambda name: "fpu avx2 fma amx_tile")
    assert doctor.cpu_flags() == ["avx2", "fma", "amx_tile"]


def test_every_op_is_reported() -> None:
    files = Path(torch_backend.__file__).parent.glob("[a-z]*.py")
    assert set(doctor.OPS) == {file.stem for file in files}


def test_measuring_the_bandwidth_leaves_the_threads_alone() -> None:
    before = torch.get_num_threads()
    found = doctor.read_bandwidth(num_bytes=1 << 22, seconds=0.0)
    assert torch.get_num_threads() == before
    assert found["bytes"] == 1 << 22
    assert 1e8 < found["bytes_per_second"] < 1e13
    assert 1 <= found["threads"] <= 2


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_READ_BYTES", 1 << 22)
    small = doctor.read_bandwidth
    monkeypatch.setattr(doctor, "read_bandwidth", lambda: small(1 << 22, 0.0))


def test_the_document_explains_every_op(quick: None, torch_backend: None) -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert set(report["versions"]) == {"python", *doctor.PACKAGES}
    assert report["library"] == {"isa": "torch", "QSPEC_CPU_ISA": "torch"}
    assert set(report["ops"]) == set(doctor.OPS)
    assert all(line.startswith(f"{op} on cpu: torch") for op, line in report["ops"].items())
    assert all("QSPEC_CPU_ISA=torch" in line for line in report["ops"].values())
    assert report["gpu"]["devices"] or report["gpu"]["reason"]
    assert report["memory"]["available_bytes"] <= report["memory"]["total_bytes"]


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """PyTorch sees an H100; what else there is, the test says."""
    properties = SimpleNamespace(name="NVIDIA H100", major=9, minor=0, total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    yield from pretended(monkeypatch)


def test_every_op_of_a_gpu_is_explained(hopper: Device) -> None:
    pytest.importorskip("triton")
    hopper((9, 0), ("triton", "cupy"))
    report = doctor.gpu()
    assert report["devices"] == [{"name": "NVIDIA H100", "capability": "9.0", "total_bytes": 80 << 30}]
    ops, prefill = report["ops"], report["prefill"]
    assert set(ops) == set(doctor.OPS)
    because = ", because one token over 4096 x 4096 weights keeps 2048 warps at work"
    by_cuda = {op for op, line in ops.items() if line.startswith(f"{op} on cuda: cuda (sm_90){because}")}
    assert by_cuda == {"linear_w4a16", "linear_w4a8", "linear_mxfp4a16", "linear_mxfp4a8"}
    others = {op: line for op, line in ops.items() if op not in by_cuda}
    assert "not cuda: needs int4 tensor cores" in others["linear_w4a4"]
    # what small calls get is said too, since the doctor knows no sizes
    assert "; for sizes up to (32768, 1) cuda first, because " in others["hadamard_quantize_act"]
    assert all(line.startswith(f"{op} on cuda: triton (sm_90)") for op, line in others.items())
    # in 32 bits there is no kernel of its own
    ordinary = {"linear_fp32": ops["linear_fp32"]}
    assert prefill == {op: f"{op}_prefill on cuda: triton (sm_90)" for op in doctor.LINEARS} | ordinary
    hopper((9, 0), ())
    report = doctor.gpu()
    for lines in (report["ops"], report["prefill"]):
        assert all(line.startswith(f"{op} on cuda: torch; ") for op, line in lines.items())
        assert all("not triton: triton is not installed" in line for line in lines.values())
    assert "not cuda: cupy is not installed (pip install 'qspec[cuda]')" in report["ops"]["linear_w4a8"]


def test_the_text_explains_every_op_of_a_gpu(quick: None, torch_backend: None, hopper: Device) -> None:
    hopper((7, 5))
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.stderr
    # lines are folded to the width of the terminal
    head, ops, prefill = re.split("gpu ops|gpu prefill", " ".join(result.stdout.split()))
    assert "gpu NVIDIA H100, 9.0, 85.9 GB" in head
    refusal = "needs sm_80 or later; the device is sm_75 (plain PyTorch serves it)"
    assert f"linear_fp32 on cuda: torch; not triton: {refusal};" in ops
    # who is refused for calls of any size is not refused for small ones again
    assert "for sizes" not in ops
    for text, named in ((ops, doctor.OPS), (prefill, doctor.LINEARS)):
        assert text.count(" on cuda: ") == len(named)
        assert all(f"{op} on cuda: torch; not" in text for op in named)


def test_a_package_has_the_version_of_the_distribution_that_is_there() -> None:
    assert doctor.PACKAGES["cupy"][0] == "cupy-cuda12x"
    assert doctor._version(("no-such-distribution", "torch")) == version("torch")
    assert doctor._version(("no-such-distribution",)) is None


def test_the_text_has_a_line_per_subject(quick: None, torch_backend: None) -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.stderr
    for subject in (
        "versions",
        "cpu flags",
        "usable cpus",
        "read bandwidth",
        "gpu",
        "library",
        "attention on cpu",
    ):
        assert subject in result.stdout
    assert "\x1b" not in result.stdout


def test_a_library_that_does_not_exist_is_refused(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from qspec_kernels import dispatch

    monkeypatch.setenv("QSPEC_CPU_ISA", "mmx")
    dispatch.reset()
    try:
        result = CliRunner().invoke(app, ["doctor", "--json"])
    finally:
        monkeypatch.undo()
        dispatch.reset()
    assert result.exit_code == 2
    assert "mmx" in json.loads(result.stdout)["error"]["message"]
