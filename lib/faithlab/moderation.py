"""Variances of a few seeds, steadied by those of other comparisons in the same table: the moderated t statistic.

Three seeds may agree by chance. Their variance is then far too small, and a t test that believes it finds differences
which are none; among many comparisons some such seeds are certain to come. Where many arms were trained with a few
seeds each, the others say how far seeds usually lie apart (Smyth 2004, Statistical Applications in Genetics and
Molecular Biology 3, art. 3): true variances are taken as drawn from a scaled inverse chi-squared distribution with
d0 degrees of freedom around s0^2, both estimated from all of them, and each is moved towards it:

    (d0 s0^2 + d s^2) / (d0 + d),   with d0 + d degrees of freedom, at most those of all together.

Alike variances give a large d0 and are pooled; unlike ones a small d0, and each keeps its own. One's own variance is
never made smaller here, and where it is kept, so are its own degrees of freedom: an arm whose seeds lie far apart does
so for a reason, such as a collapse of one of them, of which the others know nothing.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from scipy import optimize, special

from faithlab.errors import FaithlabError

Numbers = Float[np.ndarray, " comparison"]


def moderated(variances: Numbers, freedom: Numbers, most: float = math.inf) -> tuple[Numbers, Numbers]:
    """Moderated variances, none below its own, and their degrees of freedom.

    `variances` are sample variances with `freedom` degrees each, and `most` is how many independent degrees there are
    in all: fewer than their sum where comparisons share an arm. NaN variances and those without freedom come back as
    they are, and so do all where fewer than two are above 0. A variance of 0 is moved and has no part in the estimate.
    Raises `FaithlabError` for unlike lengths and negative values.
    """
    own, d = np.asarray(variances, dtype=float), np.asarray(freedom, dtype=float)
    if own.shape != d.shape or own.ndim != 1:
        raise FaithlabError(f"a variance and a number of degrees of freedom each; got shapes {own.shape}, {d.shape}")
    if (own < 0).any() or (d < 0).any():
        raise FaithlabError("variances and degrees of freedom are not negative")
    there = ~np.isnan(own) & (d > 0)
    if (there & (own > 0)).sum() < 2:
        return own, d
    centre, weight = prior(own[there & (own > 0)], d[there & (own > 0)])
    moved = np.full_like(own, centre) if math.isinf(weight) else (weight * centre + d * own) / (weight + d)
    lifted = there & (moved > own)
    together = np.maximum(d, np.minimum(weight + d, min(most, d[there].sum())))
    return np.where(lifted, moved, own), np.where(lifted, together, d)


def prior(variances: Numbers, freedom: Numbers) -> tuple[float, float]:
    """s0^2 and d0 by the moments of the logarithms (Smyth 2004, section 6.2); d0 is infinite where the variances differ
    by no more than chance. For two or more variances above 0."""
    half = freedom / 2
    logs = np.log(variances) - special.digamma(half) + np.log(half)  # of mean log s0^2 + log(d0 / 2) - digamma(d0 / 2)
    beyond = logs.var(ddof=1) - special.polygamma(1, half).mean()  # trigamma(d0 / 2)
    if beyond <= 1e-9:
        return math.exp(logs.mean()), math.inf
    half = math.exp(optimize.brentq(lambda x: float(special.polygamma(1, math.exp(x))) - beyond, -30, 30))
    return math.exp(logs.mean() + float(special.digamma(half)) - math.log(half)), 2 * half
