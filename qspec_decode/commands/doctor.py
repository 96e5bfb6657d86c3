"""`qspec doctor`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qspec_decode.commands.outcome import note, print_json
from qspec_decode.machine import gb

if TYPE_CHECKING:
    from rich.table import Table


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say what this machine has, which path every op takes on it, and why.

    Measures how fast memory is read: decoding reads every weight once per token, so this is what bounds it.
    """
    note("measuring the read bandwidth, two seconds ...")
    from qspec_decode import doctor as examination

    report = examination.examine()
    if as_json:
        print_json(report)
        return
    from rich.console import Console

    Console(soft_wrap=True).print(_table(report), highlight=False)


def _table(report: dict[str, Any]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _lines(report):
        table.add_row(name, Text(value))
    return table


def _lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    cpu, usable, bandwidth = report["cpu"], report["cpu"]["usable"], report["read_bandwidth"]
    quota = usable["cgroup_quota"]
    limits = f"{usable['online']} online, {usable['affinity']} by affinity, " + (
        f"{quota:g} by the control group" if quota else "no control group limit"
    )
    size = report["memory"]
    isa, asked = report["library"]["isa"], report["library"]["QSPEC_CPU_ISA"]
    why = "the ops say why there are no native kernels" if isa == "torch" else "the best that this CPU runs"
    why = f"QSPEC_CPU_ISA={asked}" if asked else why
    gpu = report["gpu"]
    gpus = [f"{d['name']}, {d['capability']}, {gb(d['total_bytes'])}" for d in gpu["devices"]]
    lines = [
        ("versions", ", ".join(f"{name} {v or 'not installed'}" for name, v in report["versions"].items())),
        ("platform", report["platform"]),
        ("cpu", cpu["model"] or "unknown"),
        ("cpu flags", " ".join(cpu["flags"]) or "none that a kernel asks for"),
        ("usable cpus", f"{usable['count']} ({limits}); torch uses {report['threads']} threads"),
        ("memory", f"{gb(size['total_bytes'])}, {gb(size['available_bytes'])} available"),
        (
            "read bandwidth",
            f"{bandwidth['bytes_per_second'] / 1e9:.1f} GB/s with {bandwidth['threads']} threads "
            f"({bandwidth['how']} of {bandwidth['passes']} over {gb(bandwidth['bytes'])})",
        ),
        ("gpu", "; ".join(gpus) or f"none: {gpu['reason']}"),
        ("library", f"{isa} ({why})"),
    ]
    for subject, paths in (
        ("ops", report["ops"]),
        ("gpu ops", gpu.get("ops", {})),
        ("gpu prefill", gpu.get("prefill", {})),
    ):
        lines += [(subject if i == 0 else "", line) for i, line in enumerate(paths.values())]
    return lines
