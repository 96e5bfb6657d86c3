"""What decoding on a GPU found, as plain values: rates, speed-ups and their causes, and texts that differ."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qspec_decode.bench import cost
from qspec_decode.bench.contenders import Contender
from qspec_decode.bench.document import run_document
from qspec_decode.bench.gpu.decode_plan import Task
from qspec_decode.bench.passes import Pass
from qspec_decode.bench.record import spread, why_not_of_record
from qspec_decode.output import DecodingOutput

BASELINES = (Contender("bf16"), Contender("w4a16"))
# fields of `run_document` that a table of rates has no use for
_LEFT_OUT = ("token_ids", "text", "finish_reasons", "seeds", "load_seconds", "speedup", "speedup_quartiles")
_MOST_UNEQUAL = 20


@dataclass
class Texts:
    """Greedy texts of every target. A row's is the same whatever drafts, whichever rows share its batch, and
    with graphs or without: here that is held against what was decoded.

    Parameters
    ----------
    unequal
        What decoded another text, for which prompt, and from which position on.
    """

    unequal: list[dict[str, Any]] = field(default_factory=list)
    _known: dict[tuple[str, str, int], list[int]] = field(default_factory=dict)

    def compare(
        self, task: Task, one: Contender, outputs: Sequence[DecodingOutput], num_prompts: int
    ) -> bool:
        """Whether all rows are what they were when their prompt was decoded first."""
        equal = True
        for turn, out in enumerate(outputs):
            for row, found in enumerate(out.token_ids):
                prompt = (turn * task.batch + row) % num_prompts
                expected = self._known.setdefault((task.scale, one.target, prompt), found)
                if expected == found:
                    continue
                equal = False
                if len(self.unequal) < _MOST_UNEQUAL:
                    pairs = enumerate(zip(expected, found, strict=False))
                    at = next((i for i, (a, b) in pairs if a != b), min(len(expected), len(found)))
                    self.unequal.append(
                        {"what": task.what, "name": one.title, "prompt": prompt, "position": at}
                    )
        return equal


@dataclass
class Figures:
    """Rows of the document.

    Parameters
    ----------
    passes, runs
        As plain values for JSON.
    """

    passes: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    _seconds: dict[tuple[str, int], dict[Pass, float]] = field(default_factory=dict)
    _plain: dict[tuple[str, int, bool, Contender], float] = field(default_factory=dict)

    def add_passes(self, task: Task, kinds: Sequence[Pass], rows: Sequence[dict[str, Any]]) -> None:
        """Passes of one scale and batch size, as `timing.rows` describes them."""
        names = ("us", "bytes", "gb_per_second", "fraction_of_copy", "copy_gb_per_second")
        self._seconds[task.scale, task.batch] = {
            kind: row["us"]["median"] / 1e6 for kind, row in zip(kinds, rows, strict=True)
        }
        self.passes += [
            {
                "scale": task.scale,
                "batch": task.batch,
                "model": kind.owner,
                "precision": kind.precision,
                "tokens_per_row": kind.width,
                "draft": kind.draft,
                **{name: row[name] for name in names},
            }
            for kind, row in zip(kinds, rows, strict=True)
        ]

    def add_runs(
        self,
        task: Task,
        calls: Mapping[Contender | str, Sequence[DecodingOutput]],
        steps: Mapping[Contender, Sequence[Sequence[Pass]]],
        equal: Mapping[Contender, bool],
        num_prompts: int,
    ) -> None:
        """What everyone of a task decoded in turns.

        Parameters
        ----------
        calls
            Of contenders, and of other programs under their names.
        steps
            As `Ours.steps`.
        equal
            Whether texts are as they were; see `Texts`.
        num_prompts
            Rows beyond so many repeat the first ones, and count once.
        """
        for one in BASELINES:
            if one in calls:
                rate = statistics.median(out.tokens_per_second for out in calls[one])
                self._plain.setdefault((task.scale, task.batch, task.graphs, one), rate)
        for one, outputs in calls.items():
            rates = spread([out.tokens_per_second for out in outputs])
            run = {
                "scale": task.scale,
                "batch": task.batch,
                "graphs": task.graphs if isinstance(one, Contender) else None,
                "name": one.title if isinstance(one, Contender) else one,
                "peer": not isinstance(one, Contender),
                "num_calls": len(outputs),
                "tokens_per_second": {"median": rates.median, "low": rates.low, "high": rates.high},
                "speedup_over": self._speedups(task, calls, outputs),
                "step_seconds": statistics.median(
                    out.decode_seconds / max(1, out.num_target_steps) for out in outputs
                ),
                "graph_bytes": outputs[-1].graph_bytes,
            }
            if isinstance(one, Contender):
                run |= self._own(task, one, calls, num_prompts) | {"equal": equal[one]}
                run |= self._explained(task, steps[one], run)
            self.runs.append(run)

    def _speedups(
        self,
        task: Task,
        calls: Mapping[Contender | str, Sequence[DecodingOutput]],
        outputs: Sequence[DecodingOutput],
    ) -> dict[str, dict[str, Any]]:
        """Over plain decoding of each target: call by call where it took turns, else over its median."""
        found = {}
        for one in BASELINES:
            if one in calls:
                rates = [plain.tokens_per_second for plain in calls[one]]
            elif (task.scale, task.batch, task.graphs, one) in self._plain:
                rates = [self._plain[task.scale, task.batch, task.graphs, one]] * len(outputs)
            else:
                continue
            ratios = [out.tokens_per_second / rate for out, rate in zip(outputs, rates, strict=True) if rate]
            if ratios:
                over = spread(ratios)
                found[one.target] = {
                    "median": over.median,
                    "low": over.low,
                    "high": over.high,
                    "in_turns": one in calls,
                }
        return found

    def _own(
        self,
        task: Task,
        one: Contender,
        calls: Mapping[Contender | str, Sequence[DecodingOutput]],
        num_prompts: int,
    ) -> dict[str, Any]:
        """Of a ladder or of plain decoding: acceptance, level by level, and whether the figures count."""
        document = run_document(
            calls[one], calls[one.plain], drafts=one.drafts, temperature=0.0, decode=None, load_seconds=0.0
        )
        distinct = document | {"token_ids": document["token_ids"][:num_prompts]}
        reason = why_not_of_record(distinct, task.scale)
        kept = {
            name: value
            for name, value in document.items()
            if name not in (*_LEFT_OUT, "tokens_per_second", "baseline_tokens_per_second")
        }
        return kept | {
            "num_speculative_tokens": list(one.num_speculative_tokens) if one.drafts else [],
            "num_prompts": len(distinct["token_ids"]),
            "of_record": not reason,
            "not_of_record_because": reason,
        }

    def _explained(
        self, task: Task, steps: Sequence[Sequence[Pass]], run: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What a run is made of, from passes alone at its batch size; nothing where they were not measured.

        c: a step of every draft level over the target's step. v: of every level that verifies, its
        verification over its own step. alpha: the chance that a draft stands, per level. formula_speedup:
        E(alpha, K) / (K c + v), where there are two models' levels and no more. step_over_copy, of plain
        decoding: its step, with everything on the host, over copying so many bytes.
        """
        seconds = self._seconds.get((task.scale, task.batch))
        if seconds is None:
            return {}
        taken = [[seconds[kind] for kind in (*level[:1], *level[-1:])] or [0.0] for level in steps]
        target = taken[0][0]
        if len(steps) == 1:
            passed = next(
                row for row in reversed(self.passes)
                if (row["scale"], row["batch"]) == (task.scale, task.batch)
                and Pass(row["model"], row["precision"], row["tokens_per_row"], row["draft"]) == steps[0][0]
            )  # fmt: skip
            copying = passed["bytes"] / (passed["copy_gb_per_second"] * 1e9)
            return {"pass_over_copy": target / copying, "step_over_copy": run["step_seconds"] / copying}
        alphas = [level["per_token_acceptance"] for level in run["levels"]]
        c, v = [level[0] / target for level in taken[1:]], [level[-1] / level[0] for level in taken[:-1]]
        found: dict[str, Any] = {"c": c, "v": v, "alpha": alphas, "formula_speedup": None}
        if len(steps) == 2 and steps[1]:
            found["formula_speedup"] = cost.expected_speedup(alphas[0], len(steps[0]) - 1, c[0], v[0])
        return found
