"""Loops in machine code: which instructions a kernel repeats most often.

A listing of cuobjdump becomes blocks and jumps between them. A jump to a block that every way to the jump
leads through closes a loop, whose blocks are those that reach the jump without that block. Where instructions
stand in the listing says nothing: what is rarely run is put behind the end.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

INSTRUCTION = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;/]*)", re.MULTILINE
)
# they end a block; those of the second kind lead nowhere that the listing tells of
_JUMPS, _ENDS = ("BRA", "JMP", "CALL", "WARPSYNC.COLLECTIVE"), ("EXIT", "RET")


@dataclass(frozen=True)
class Instruction:
    """An instruction, where it stands, its predicate ("" if it always runs) and what follows its name."""

    address: int
    predicate: str
    opcode: str
    operands: str

    @property
    def stem(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def target(self) -> int | None:
        """Where it may jump to; None if nowhere."""
        named = re.search(r"\b0x([0-9a-f]+)\s*$", self.operands) if self.opcode.startswith(_JUMPS) else None
        return int(named[1], 16) if named else None

    @property
    def goes_on(self) -> bool:
        """Whether the next instruction may follow it: a call's, when it has returned."""
        conditional = bool(self.predicate) or "," in self.operands
        return conditional if self.stem in ("BRA", "JMP", *_ENDS) else True


@dataclass
class _Block:
    instructions: list[Instruction]
    before: set[int] = field(default_factory=set)
    after: list[int] = field(default_factory=list)


def instructions(listing: str) -> list[Instruction]:
    """All of a kernel, in their order."""
    found = INSTRUCTION.findall(listing)
    return [Instruction(int(address, 16), *rest) for address, *rest in found]


def inner_loops(code: list[Instruction], working: Collection[str]) -> Iterator[list[Instruction]]:
    """The loops that no other one lies in, and of those that hold a `working` opcode those that no other such
    one lies in: what waits in a loop of its own does not make the loop around it an outer one.

    Parameters
    ----------
    working
        Opcodes without modifiers.

    Raises
    ------
    ValueError
        If a jump leads to a place that is not in the listing: ways through it are unknown.
    """
    blocks = _blocks(code)
    loops = _loops(blocks)
    work = {i for i, block in enumerate(blocks) if any(one.stem in working for one in block.instructions)}
    for loop in loops:
        others = [other for other in loops if other & work] if loop & work else loops
        if not any(other < loop for other in others):
            yield [one for i in sorted(loop) for one in blocks[i].instructions]


def _blocks(code: list[Instruction]) -> list[_Block]:
    """Code cut behind every jump and before every place that is jumped to; the first block is the entry."""
    starts = {one.target for one in code if one.target is not None} | {code[0].address}
    starts |= {next_.address for one, next_ in pairwise(code) if one.opcode.startswith((*_JUMPS, *_ENDS))}
    if unknown := starts - {one.address for one in code}:
        raise ValueError(f"jumps to {sorted(map(hex, unknown))}, which are no instructions")
    if any(one.stem in ("BRX", "JMX") for one in code):
        raise ValueError("jumps to what a register holds")
    blocks: list[_Block] = []
    for one in code:
        if one.address in starts:
            blocks.append(_Block([]))
        blocks[-1].instructions.append(one)
    number = {block.instructions[0].address: i for i, block in enumerate(blocks)}
    for i, block in enumerate(blocks):
        last = block.instructions[-1]
        if last.target is not None:
            block.after.append(number[last.target])
        if last.goes_on and i + 1 < len(blocks):
            block.after.append(i + 1)
        for j in block.after:
            blocks[j].before.add(i)
    return blocks


def _loops(blocks: list[_Block]) -> list[frozenset[int]]:
    """Blocks of every loop; loops that begin with the same block are one."""
    found: dict[int, set[int]] = {}
    for i, through in _dominators(blocks).items():
        for head in set(blocks[i].after) & through:
            body, waiting = found.setdefault(head, {head}), [i]
            while waiting:
                if (block := waiting.pop()) not in body:
                    body.add(block)
                    waiting += blocks[block].before
    return [frozenset(body) for body in found.values()]


def _dominators(blocks: list[_Block]) -> dict[int, set[int]]:
    """For each block that can be reached those, itself included, that every way to it leads through."""
    reached, waiting = set(), [0]
    while waiting:
        if (block := waiting.pop()) not in reached:
            reached.add(block)
            waiting += blocks[block].after
    through = {i: set(reached) for i in reached} | {0: {0}}
    changed = True
    while changed:
        changed = False
        for i in sorted(reached - {0}):
            met = set.intersection(*(through[j] for j in blocks[i].before if j in reached)) | {i}
            if met != through[i]:
                through[i], changed = met, True
    return through
