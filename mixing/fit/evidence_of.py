"""What proxy runs say about mixtures that did not come from them: influence's, leave-one-out's, one's own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from curation.errors import DataError
from mixing.evidence import Evidence, unweighed
from mixing.fit.checks import Runs, objective_weights, runs_table
from mixing.fit.loss_posterior import LossPosterior, ProcessPosterior
from mixing.fit.weighing import weigh

BASIS = "Gaussian processes on log shares"


def evidence_of(
    mixtures: Mapping[str, Mapping[str, float]],
    runs: Runs,
    *,
    objective: Mapping[str, float] | None = None,
    posterior: LossPosterior | None = None,
    seed: int = 0,
) -> dict[str, Evidence]:
    """Evidence of each of some mixtures, the others its rivals: "uniform" and "proportional" are beaten or not.

    runs      : as in `fit`
    posterior : in place of Gaussian processes, what weighs them
    Raises DataError when a mixture names other sources than the runs.
    """
    table, _ = runs_table(runs)
    weights = {}
    for name, shares in mixtures.items():
        if set(shares) != set(table.sources):
            odd = sorted(set(shares) ^ set(table.sources))
            raise DataError(
                f"The mixture {name!r} and the proxy runs name different sources, such as {odd[0]!r}",
                where="evidence",
                remedy="Give mixtures of the sources that the runs were made with",
            )
        weights[name] = np.array([shares[source] for source in table.sources])
    if not np.any(np.ptp(table.losses, axis=0) > 0):
        return {name: unweighed("The metrics are the same in all runs") for name in mixtures}
    fitted = ProcessPosterior.fit(table) if posterior is None else posterior
    return {
        name: weigh(
            own,
            fitted,
            objective_weights(table.metrics, objective),
            table.metrics,
            {other: shares for other, shares in weights.items() if other != name},
            runs=len(table.run_ids),
            basis=BASIS if posterior is None else type(fitted).__name__,
            seed=seed,
            # Without seconds, which differ from run to run: equal runs give equal mixtures, byte for byte.
            flops=table.flops,
        )
        for name, own in weights.items()
    }
