"""Mixtures from proxy runs, ours or anybody's: `fit_mixture(ratios, metrics, method)`; needs no torch."""

from mixing.callable_module import make_callable
from mixing.fit.fit import METHODS, fit, fit_mixture
from mixing.fit.loss_posterior import LossPosterior, ProcessPosterior
from mixing.fit.tables import ProxyTable, read_proxy_table

__all__ = [
    "METHODS",
    "LossPosterior",
    "ProcessPosterior",
    "ProxyTable",
    "fit",
    "fit_mixture",
    "read_proxy_table",
]

_call = fit
make_callable(__name__)
