"""From what passes cost and which ones a ladder made to the speed-up it should have had."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qspec_decode.bench import cost
from qspec_decode.bench.clock import Call, Made
from qspec_decode.bench.entrants import Ours
from qspec_decode.bench.passes import Pass, Warm, time_passes
from qspec_decode.bench.peaks import Peak
from qspec_decode.bench.record import Spread, merge
from qspec_decode.model import Transformer

# the largest K that the formula is worked out for
MAX_K = 8
# with more rows the widest verifications take long, and no ladder makes them
_MOST_ROWS_OF_ALL_WIDTHS = 8


def kinds_of(entrants: Iterable[Ours], batch: int) -> list[Pass]:
    """Every kind of pass that these make with so many rows.

    Of what verifies first every width, where rows are few. Of what a ladder runs also a step of fewer rows,
    since rows end at different times.
    """
    kinds: dict[Pass, None] = {}
    for one in entrants:
        levels = one.steps
        kinds |= dict.fromkeys(kind for level in levels for kind in level)
        if one.is_plain:
            continue
        if batch <= _MOST_ROWS_OF_ALL_WIDTHS:
            target = levels[0][0].precision
            kinds |= dict.fromkeys(Pass("target", target, width) for width in range(1, MAX_K + 2))
        for first in (level[0] for level in levels if level):
            rows = 1
            while rows < batch:
                kinds[Pass(first.owner, first.precision, 1, first.draft, rows)] = None
                rows *= 2
    return list(kinds)


@dataclass(frozen=True)
class Costs:
    """Seconds of every kind of pass at one batch size, and bytes read per second beside them."""

    seconds: dict[Pass, Spread]
    batch: int = 1
    bandwidth: Spread | None = None

    @classmethod
    def measure(
        cls,
        models: Mapping[str, Warm],
        kinds: Sequence[Pass],
        batch: int,
        seconds: float,
        reading: Peak | None,
    ) -> "Costs":
        """By `time_passes`."""
        found, bandwidth = time_passes(models, kinds, seconds, reading)
        return cls(found, batch, bandwidth)

    def alone(self, made: Made) -> float:
        """What a pass of so many tokens takes alone: as measured, or between the two nearest that were."""
        points = {
            kind.width * (kind.rows or self.batch): seconds.median
            for kind, seconds in self.seconds.items()
            if (kind.owner, kind.precision, kind.draft) == (made.owner, made.precision, made.draft)
        }
        return cost.between(points, made.tokens)

    def in_loop(self, calls: Sequence[Call]) -> dict[str, Any]:
        """How decoding differs from passes alone.

        passes_over_alone: what its passes took over what they take alone. beside_seconds: per round, the
        time in which none ran.
        """
        passes = [made for call in calls for made in call.passes]
        alone = sum(map(self.alone, passes))
        rounds = sum(call.output.num_target_steps for call in calls)
        beside = sum(call.seconds_beside for call in calls)
        return {
            "passes_over_alone": sum(made.seconds for made in passes) / alone if alone else None,
            "beside_seconds": beside / rounds if rounds else None,
        }

    def explain(
        self, steps: Sequence[Sequence[Pass]], calls: Sequence[Call], plain: Sequence[Call]
    ) -> dict[str, Any]:
        """What a ladder's figures are made of.

        c: a step of every draft level over the target's step. v: of every level that verifies, its
        verification of K drafts over its own step. alpha: the chance that a draft stands, per level. The
        predicted speed-up is the median over calls, as the measured one is: all passes that the call made at
        what they cost alone, and the time beside them, under the same of plain decoding. `by_k` is the
        formula E(alpha, K) / (K c + v) for every K, where there are two models' levels and no more and K is
        the same in every round: where drafting ends before drafts that are unlikely to stand, alpha is that
        of the others.

        Parameters
        ----------
        steps
            As `Ours.steps`.
        calls, plain
            The ladder's calls, and those of plain decoding with its target.
        """
        seconds = [[self.seconds[kind].median for kind in level] or [0.0] for level in steps]
        target = seconds[0][0]
        levels = merge([call.output.levels for call in calls])
        alphas = [level.per_token_acceptance for level in levels]
        pairs = list(zip(plain, calls, strict=True))
        predicted = [self._predicted(baseline) / self._predicted(call) for baseline, call in pairs]
        measured = [baseline.output.decode_seconds / call.output.decode_seconds for baseline, call in pairs]
        found: dict[str, Any] = {
            "c": [level[0] / target for level in seconds[1:]],
            "v": [level[-1] / level[0] for level in seconds[:-1]],
            "alpha": alphas,
            "predicted_speedup": statistics.median(predicted),
            "measured_over_predicted": statistics.median(
                m / p for m, p in zip(measured, predicted, strict=True)
            ),
            "formula_speedup": None,
            "by_k": [],
        }
        # a table proposes as many tokens as it finds, often none: K and alpha do not describe it
        if len(steps) == 2 and steps[1] and calls[0].output.draft_confidence_threshold == 0:
            found["formula_speedup"] = cost.expected_speedup(
                alphas[0], len(steps[0]) - 1, found["c"][0], found["v"][0]
            )
            found["by_k"] = self._by_k(steps[0][0], alphas[0], found["c"][0])
        return found

    def to_list(self, models: Mapping[str, Transformer | None]) -> list[dict[str, Any]]:
        """Every kind of pass over all rows as plain values for JSON, with the bytes of weights it reads."""
        rows = []
        fastest = self.bandwidth.median if self.bandwidth else None
        for kind, seconds in self.seconds.items():
            if kind.rows is not None:
                continue
            model = models[kind.owner]
            assert model is not None
            size = model.bytes_per_pass(kind.precision, draft_head=kind.draft)
            rate = size / seconds.median
            rows.append(
                {
                    "model": kind.owner,
                    "precision": kind.precision,
                    "tokens_per_row": kind.width,
                    "draft": kind.draft,
                    "seconds": seconds.median,
                    "seconds_quartiles": [seconds.low, seconds.high],
                    "bytes": size,
                    "bytes_per_second": rate,
                    "fraction_of_read_bandwidth": rate / fastest if fastest else None,
                }
            )
        return rows

    def _predicted(self, call: Call) -> float:
        return sum(map(self.alone, call.passes)) + call.seconds_beside

    def _by_k(self, step: Pass, alpha: float, c: float) -> list[dict[str, Any]]:
        rows = []
        for k in range(1, MAX_K + 1):
            verify = self.seconds.get(Pass("target", step.precision, k + 1))
            if verify is not None:
                v = verify.median / self.seconds[step].median
                rows.append({"k": k, "v": v, "expected_speedup": cost.expected_speedup(alpha, k, c, v)})
        return rows
