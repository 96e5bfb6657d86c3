"""What `python -m tests.wheel` must refuse; the wheel itself is built and looked at by .ci/run."""

import pytest

from tests import wheel

NAME = "qspec-0.1.0-py3-none-linux_x86_64.whl"
INFORMATION = "qspec-0.1.0.dist-info"


def good() -> dict[str, str]:
    """The files of a wheel as it should be."""
    return dict.fromkeys(wheel.expected(), "") | {
        f"{INFORMATION}/WHEEL": "Root-Is-Purelib: false\nTag: py3-none-linux_x86_64\n",
        f"{INFORMATION}/METADATA": "Requires-Python: >=3.11\nLicense-Expression: Apache-2.0\n",
        f"{INFORMATION}/entry_points.txt": "[console_scripts]\nqspec = qspec_decode.cli:main\n",
        f"{INFORMATION}/licenses/LICENSE": (wheel.ROOT / "LICENSE").read_text(),
    }


def test_a_good_wheel_has_no_faults():
    assert wheel.faults(NAME, good()) == []


@pytest.mark.parametrize(
    "missing",
    [
        *wheel.NEEDED,
        *wheel.libraries(),
        "qspec_kernels/nn.py",
        "qspec_decode/demo/checkpoints/small/tokenizer.json",
        "qspec_decode/demo/prompts.jsonl",
    ],
)
def test_what_is_missing_is_named(missing):
    files = good()
    del files[missing]
    assert wheel.faults(NAME, files) == [f"lacks {missing}"]


@pytest.mark.parametrize(
    "added",
    [
        "tests/conftest.py",
        "reference/linear.py",
        "qspec_kernels/backends/cpp/linear_w4a4.cpp",
        "qspec_kernels/backends/cpp/simd.hpp",
        "qspec_kernels/nn.pyc",
    ],
)
def test_what_does_not_belong_is_named(added):
    assert wheel.faults(NAME, good() | {added: ""}) == [f"holds {added}"]


@pytest.mark.parametrize(
    "name", ["qspec-0.1.0-cp311-cp311-linux_x86_64.whl", "qspec-0.1.0-py3-none-any.whl", "qspec-0.2.0.zip"]
)
def test_a_name_for_other_pythons_or_any_machine_is_refused(name):
    (fault,) = wheel.faults(name, good())
    assert fault.startswith(f"is named {name}; expected qspec-0.1.0-py3-none-")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("WHEEL", "Root-Is-Purelib: true\n"),
        ("METADATA", "Requires-Python: >=3.10\nLicense-Expression: Apache-2.0\n"),
        ("METADATA", "Requires-Python: >=3.11\n"),
        ("entry_points.txt", ""),
        ("licenses/LICENSE", "MIT License\n"),
    ],
)
def test_metadata_that_says_otherwise_is_refused(path, text):
    (fault,) = wheel.faults(NAME, good() | {f"{INFORMATION}/{path}": text})
    assert fault.endswith(f"in {INFORMATION}/{path}")
