"""The mixture that rests on everything at once: random runs, leave-one-out and influence in one posterior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixing.fit import read_proxy_table
from mixing.fit.search import Simplex
from mixing.posterior.evidence import Effects, Influence
from mixing.posterior.fit import fit_posterior
from mixing.posterior.method import propose_posterior


def posterior_weights(
    tables: tuple[Path, Path],
    effects: Sequence[Mapping[str, Any]],
    benefits: Mapping[str, Mapping[str, float]],
) -> dict[str, float]:
    """Weights of `mixing.posterior` with equal weights of the capabilities.

    effects  : rows `source, capability, seed, delta` of leave-one-out at the uniform mixture
    benefits : by capability the density of each source at the uniform mixture
    """
    table = read_proxy_table(*tables)
    sources, capabilities = table.sources, table.metrics
    uniform = dict.fromkeys(sources, 1 / len(sources))
    seeds = sorted({row["seed"] for row in effects})
    delta = np.zeros((len(seeds), len(sources), len(capabilities)))
    for row in effects:
        place = seeds.index(row["seed"]), sources.index(row["source"]), capabilities.index(row["capability"])
        delta[place] = row["delta"]
    benefit = np.array([[benefits[c][s] for c in capabilities] for s in sources])
    simplex = Simplex(sources, np.zeros(len(sources)), np.ones(len(sources)))
    posterior = fit_posterior(
        table,
        Effects(uniform, sources, capabilities, delta),
        Influence(sources, capabilities, uniform, benefit),
    )
    objective = np.full(len(capabilities), 1 / len(capabilities))
    proposal = propose_posterior(table, posterior, objective, simplex)
    print("\n".join(proposal.notes))
    return dict(zip(sources, proposal.weights.tolist(), strict=True))
