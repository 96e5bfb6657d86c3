"""From what passes cost and what a ladder did to the speed-up it should have had."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qspec_decode.bench import cost
from qspec_decode.bench.bound import bytes_per_pass
from qspec_decode.bench.entrants import Ours
from qspec_decode.bench.passes import MAX_WIDTH, Pass, Warm, time_passes
from qspec_decode.bench.peaks import Peak
from qspec_decode.bench.record import Spread
from qspec_decode.model import Transformer
from qspec_decode.stats import SpecDecodingStats


def kinds_of(entrants: Iterable[Ours]) -> list[Pass]:
    """Every kind of pass that these make, and every width of what verifies first."""
    kinds: dict[Pass, None] = {}
    for one in entrants:
        levels = one.steps
        kinds |= dict.fromkeys(kind for level in levels for kind in level)
        if not one.is_plain:
            target = levels[0][0].precision
            kinds |= dict.fromkeys(Pass("target", target, width) for width in range(1, MAX_WIDTH + 1))
    return list(kinds)


@dataclass(frozen=True)
class Costs:
    """Seconds of every kind of pass at one batch size, and bytes read per second beside them."""

    seconds: dict[Pass, Spread]
    bandwidth: Spread | None = None

    @classmethod
    def measure(
        cls, models: Mapping[str, Warm], kinds: Sequence[Pass], seconds: float, reading: Peak | None
    ) -> "Costs":
        """By `time_passes`."""
        return cls(*time_passes(models, kinds, seconds, reading))

    def explain(
        self, steps: Sequence[Sequence[Pass]], levels: Sequence[SpecDecodingStats], num_decoded: int
    ) -> dict[str, Any]:
        """What a ladder's figures are made of.

        c: a step of every draft level over the target's step. v: of every level that verifies, its
        verification of K drafts over its own step. alpha: the chance that a draft stands, per level. The
        predicted speed-up adds up all passes that the ladder made at what they cost alone. `by_k` is the
        formula E(alpha, K) / (K c + v) for every K, where there are two models' levels and no more.

        Parameters
        ----------
        steps
            As `Ours.steps`.
        levels
            What every draft level did, summed over all calls.
        num_decoded
            Tokens of all rows after the prefill.
        """
        seconds = [[self.seconds[kind].median for kind in level] or [0.0] for level in steps]
        target = seconds[0][0]
        spent = cost.seconds_of(cost.rounds_by_width(levels, num_decoded), seconds)
        alphas = [level.per_token_acceptance for level in levels]
        found: dict[str, Any] = {
            "c": [level[0] / target for level in seconds[1:]],
            "v": [level[-1] / level[0] for level in seconds[:-1]],
            "alpha": alphas,
            "predicted_speedup": num_decoded * target / spent if spent else None,
            "formula_speedup": None,
            "by_k": [],
        }
        # a table proposes as many tokens as it finds, often none: K and alpha do not describe it
        if len(steps) == 2 and steps[1]:
            found["formula_speedup"] = cost.expected_speedup(
                alphas[0], len(steps[0]) - 1, found["c"][0], found["v"][0]
            )
            found["by_k"] = self._by_k(steps[0][0], alphas[0], found["c"][0])
        return found

    def to_list(self, models: Mapping[str, Transformer | None]) -> list[dict[str, Any]]:
        """Every kind of pass as plain values for JSON, with the bytes of weights it reads."""
        rows = []
        fastest = self.bandwidth.median if self.bandwidth else None
        for kind, seconds in self.seconds.items():
            model = models[kind.owner]
            assert model is not None
            size = bytes_per_pass(model, kind.precision, draft=kind.draft)
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

    def _by_k(self, step: Pass, alpha: float, c: float) -> list[dict[str, Any]]:
        rows = []
        for k in range(1, MAX_WIDTH):
            verify = self.seconds[Pass("target", step.precision, k + 1)].median
            v = verify / self.seconds[step].median
            rows.append({"k": k, "v": v, "expected_speedup": cost.expected_speedup(alpha, k, c, v)})
        return rows
