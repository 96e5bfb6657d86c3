"""`python -m tests.wheel WHEEL`: a wheel's name fits any Python, and it holds what a user needs and no more.

What belongs into it: every file of the two packages but the C++ sources, and the libraries built from those.
"""

import platform
import sys
import tomllib
import zipfile
from pathlib import Path

from qspec_kernels.backends.cpp import library

ROOT = Path(__file__).parents[1]
PACKAGES = ("qspec_kernels", "qspec_decode")
COMPILED = {".cpp", ".hpp"}
LIBRARIES = "qspec_kernels/backends/cpp/lib"

# named one by one: were they gone from the tree, the comparison with it would see nothing
NEEDED = [
    *(f"{package}/py.typed" for package in PACKAGES),
    *(f"qspec_decode/demo/checkpoints/{name}/model.safetensors" for name in ("small", "target")),
    "qspec_decode/demo/PSF-LICENSE.txt",
    "qspec_kernels/backends/cuda/linear_w4a4.cu",
    "qspec_kernels/backends/cuda/integer.cuh",
]


def libraries() -> list[str]:
    """The libraries that are built on a machine like this one."""
    x86 = platform.machine() in ("x86_64", "AMD64", "amd64")
    return [f"{LIBRARIES}/qspec_{isa}.so" for isa in (library.REQUIRED_FLAGS if x86 else ("portable",))]


def expected(root: Path = ROOT) -> set[str]:
    """Paths of the packages' files in a wheel, from the sources in `root`."""
    found = set(libraries())
    for package in PACKAGES:
        for path in (root / package).rglob("*"):
            name = path.relative_to(root).as_posix()
            built = "__pycache__" in path.parts or name.startswith(f"{LIBRARIES}/")
            if path.is_file() and path.suffix not in COMPILED and not built:
                found.add(name)
    return found


def faults(name: str, files: dict[str, str], root: Path = ROOT) -> list[str]:
    """What is wrong with a wheel, a line for each.

    Parameters
    ----------
    name
        Of the wheel's file.
    files
        The text of each file in it by its path; those outside its .dist-info folder may be empty.
    root
        The sources that it was built from.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    stem = f"{project['name']}-{project['version']}"
    information = f"{stem}.dist-info"
    inside = {path for path in files if not path.startswith(f"{information}/")}
    wanted = expected(root)
    found = [f"lacks {path}" for path in sorted({*wanted, *NEEDED} - inside)]
    found += [f"holds {path}" for path in sorted(inside - wanted)]
    # libraries for one machine, called without Python's own interface
    if not name.startswith(f"{stem}-py3-none-") or name.endswith("-any.whl"):
        found.append(f"is named {name}; expected {stem}-py3-none-<platform>.whl")
    for path, line in (
        ("WHEEL", "Root-Is-Purelib: false"),
        ("METADATA", f"Requires-Python: {project['requires-python']}"),
        ("METADATA", f"License-Expression: {project['license']}"),
        ("entry_points.txt", f"qspec = {project['scripts']['qspec']}"),
    ):
        if line not in files.get(f"{information}/{path}", "").splitlines():
            found.append(f"has no line {line!r} in {information}/{path}")
    if files.get(f"{information}/licenses/LICENSE") != (root / "LICENSE").read_text():
        found.append(f"has another text than LICENSE in {information}/licenses/LICENSE")
    return found


def main(path: str) -> None:
    """Exit with the faults of the wheel at `path`, if it has any."""
    with zipfile.ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if not name.endswith("/")]
        files = {name: wheel.read(name).decode() if ".dist-info/" in name else "" for name in names}
    if found := faults(Path(path).name, files):
        sys.exit("\n".join(f"the wheel {fault}" for fault in found))
    print(f"{Path(path).name}: {len(files)} files, {len(libraries())} libraries")


if __name__ == "__main__":
    main(*sys.argv[1:])
