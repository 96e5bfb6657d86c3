"""The house rules of the design: import arrows, sizes, signatures, the tree in the README."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("qspec_kernels", "qspec_decode", "reference")
MAX_LINES = {".py": 300, ".cpp": 500, ".hpp": 500, ".cu": 500, ".cuh": 500}
MAX_ARGUMENTS = 8
# they mirror transformers' options; the design excepts them by name
MANY_ARGUMENTS = {"generate", "speculate"}

# who may import whom inside qspec_decode: a module sees its own row and the rows above it
DECODE_LAYERS = [
    set(row.split())
    for row in (
        "noise stats precision protocol replay cache config rope progress tensors machine checks outlook",
        "sampling sibling tokens output weights tokenizer chat checkpoint memory load_options",
        "accept proposal request model speculative_config",
        "prepare ngram emission levels fixed loop",
        "load ladder",
        "graphs",
        "generate speculate",
        "demo bench streaming doctor",
        "commands cli integrations",
    )
]


def modules(package: str) -> Iterator[tuple[str, ast.Module]]:
    """Dotted name and syntax tree of every module of a package."""
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        yield name, ast.parse(path.read_text())


def imports(tree: ast.Module) -> Iterator[str]:
    """Every module named in an import statement, wherever it stands, as written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            submodules = [f"{module}.{alias.name}" for alias in node.names if is_module(module, alias.name)]
            yield from submodules or [module]


def is_module(package: str, name: str) -> bool:
    """Whether `from package import name` imports a module of ours and not something defined in one."""
    folder = ROOT.joinpath(*package.split("."))
    return (folder / f"{name}.py").exists() or (folder / name / "__init__.py").exists()


def ours(tree: ast.Module) -> set[str]:
    return {name for name in imports(tree) if name.split(".")[0] in (*PACKAGES, "tests")}


def forbidden_kernel_import(importer: str, imported: str) -> bool:
    """The table of the design, for one import inside qspec_kernels."""
    part = importer.split(".")[1] if "." in importer else ""
    target = imported.split(".")
    if target[0] != "qspec_kernels":
        return True
    if len(target) == 1:
        return part in ("formats", "backends")
    if part == "formats":
        return target[1] not in ("errors", "formats")
    if part == "backends":
        backend = importer.split(".")[2] if importer.count(".") > 1 else ""
        if target[1] == "backends":
            return len(target) < 3 or target[2] != backend
        return target[1] not in ("errors", "formats")
    return part == "ops" and target[1] == "backends"


def decode_layer(module: str) -> int | None:
    """Row of a qspec_decode module in DECODE_LAYERS; None for the package itself."""
    parts = module.split(".")
    if len(parts) == 1:
        return None
    # where the bundled checkpoints lie; everything else in the folder runs them
    if module == "qspec_decode.demo":
        return 0
    rows = [row for row, names in enumerate(DECODE_LAYERS) if parts[1] in names]
    assert rows, f"{module} has no place in DECODE_LAYERS; add it to the row it belongs to"
    return rows[0]


def test_reference_imports_torch_alone() -> None:
    allowed = {"torch", "math", "dataclasses", "collections", "collections.abc", "itertools", "fractions"}
    for name, tree in modules("reference"):
        for imported in imports(tree):
            ok = imported in allowed or imported.split(".")[0] in ("reference", "torch")
            assert ok, f"{name} imports {imported}"


def test_kernel_imports_follow_the_arrows() -> None:
    wrong = [
        f"{name} imports {imported}"
        for name, tree in modules("qspec_kernels")
        for imported in ours(tree)
        if forbidden_kernel_import(name, imported)
    ]
    assert not wrong, "\n".join(wrong)


def test_decode_imports_follow_the_arrows() -> None:
    wrong = []
    for name, tree in modules("qspec_decode"):
        layer = decode_layer(name)
        for imported in ours(tree):
            package = imported.split(".")[0]
            if package == "qspec_kernels":
                # public names only: `from qspec_kernels import linear`, or its public submodules
                ok = imported.count(".") == 0 or imported.split(".")[1] in ("formats", "nn")
            elif package == "qspec_decode" and layer is not None:
                other = decode_layer(imported) if imported != "qspec_decode" else None
                ok = other is None or other <= layer
            else:
                ok = package == "qspec_decode"
            if not ok:
                wrong.append(f"{name} imports {imported}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("qspec_kernels.formats.int4", "qspec_kernels.ops.linear"),
        ("qspec_kernels.backends.cpp.linear_bf16", "qspec_kernels.backends.torch.linear_bf16"),
        ("qspec_kernels.backends.cpp.linear_bf16", "qspec_kernels.dispatch"),
        ("qspec_kernels.ops.linear", "qspec_kernels.backends.cpp.linear_bf16"),
        ("qspec_kernels.nn", "qspec_decode.model"),
    ],
)
def test_the_kernel_rule_refuses_wrong_arrows(importer: str, imported: str) -> None:
    assert forbidden_kernel_import(importer, imported)


def test_files_are_short() -> None:
    wrong = []
    for folder in (*PACKAGES, "tests"):
        for path in (ROOT / folder).rglob("*"):
            limit = MAX_LINES.get(path.suffix)
            if limit and path.is_file():
                lines = len(path.read_text().splitlines())
                if lines > limit:
                    wrong.append(f"{path.relative_to(ROOT)}: {lines} lines, at most {limit}")
    assert not wrong, "\n".join(wrong)


def test_public_functions_take_few_arguments() -> None:
    wrong = []
    for package in ("qspec_kernels", "qspec_decode"):
        for name, tree in modules(package):
            if ".backends." in name or ".commands" in name or name.endswith(".cli"):
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                    count = len([a for a in arguments if a.arg not in ("self", "cls")])
                    if count > MAX_ARGUMENTS and node.name not in MANY_ARGUMENTS:
                        wrong.append(f"{name}.{node.name} takes {count}")
    assert not wrong, "\n".join(wrong)


def test_public_definitions_have_docstrings() -> None:
    wrong = []
    for package in PACKAGES:
        for name, tree in modules(package):
            for node in tree.body:
                if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
                    continue
                if not ast.get_docstring(node):
                    wrong.append(f"{name}.{node.name}")
    assert not wrong, "without a docstring: " + ", ".join(wrong)


def signatures(backend: str) -> dict[str, list[str]]:
    """Parameter names of the function that each file of a backend is named after."""
    found = {}
    for path in sorted((ROOT / "qspec_kernels" / "backends" / backend).glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name == path.stem:
                found[path.stem] = [a.arg for a in (*node.args.args, *node.args.kwonlyargs)]
    return found


def test_backends_share_signatures() -> None:
    cpp, torch = signatures("cpp"), signatures("torch")
    assert set(cpp) == set(torch)
    for found in (cpp, signatures("triton"), signatures("cuda")):
        both = found.keys() & torch.keys()
        assert both
        different = {name: (found[name], torch[name]) for name in both if found[name] != torch[name]}
        assert not different, different


def readme_tree() -> set[str]:
    """Paths named in the README's tree: the first fenced block that holds `qspec_kernels/`."""
    blocks = re.findall(r"```text\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    block = next(b for b in blocks if "qspec_kernels/" in b)
    paths, stack = set(), []
    for line in filter(str.strip, block.splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        # two blanks end the names; what follows them says what the thing is for
        names = re.split(r"\s{2,}", line.strip())[0].split()
        stack = stack[:depth]
        paths.update("/".join([*stack, name]).rstrip("/") for name in names)
        stack.append(names[0].rstrip("/"))
    return paths


def test_readme_tree_equals_the_disk() -> None:
    named = readme_tree()
    missing = [path for path in named if not (ROOT / path).exists()]
    assert not missing, f"named in the README, not on disk: {missing}"
    on_disk = set()
    for package in ("qspec_kernels", "qspec_decode"):
        for path in (ROOT / package).iterdir():
            if not path.name.startswith(("_", ".")) and path.name != "py.typed":
                on_disk.add(path.relative_to(ROOT).as_posix())
    assert on_disk <= named, f"on disk, not in the README's tree: {sorted(on_disk - named)}"
