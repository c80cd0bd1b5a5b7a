"""How models are trained: what is tried, and what a model of a name is."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

WAYS = ("ml", "fixed", "ncml")  # maximum likelihood, one noise level, all noise levels
NOISY = ("ncml", "cam")  # trained at all noise levels: of the data, of the context alone
TUNING_SEED = 100


@dataclass(frozen=True)
class Settings:
    """How one model is trained.

    Args:
        way: "ml", "fixed", "ncml" or "cam".
        seed: Seed of initialisation, batches and noise.
        sigma: The noise level of "fixed".
        p_zero: Share of a batch at t = 0, of "ncml" and "cam".
        sigma_min: Where their noise ends; 0 stands for the problem's.
        learning_rate: AdamW's at its height: it rises over 100 steps and falls along a cosine.
        weight_decay, dropout: Regularisation.
        score_matching: Factor of the error of the model's own score, of "ncml".
        fokker_planck: Factor of the residual of the Fokker-Planck equation, of "ncml".
    """

    way: str
    seed: int
    sigma: float = 0.0
    p_zero: float = 0.15
    sigma_min: float = 0.0
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    dropout: float = 0.0
    score_matching: float = 0.0
    fokker_planck: float = 0.0

    @property
    def name(self) -> str:
        parts = {k: v for k, v in asdict(self).items() if k not in ("way", "seed") and v != getattr(Settings, k)}
        return "-".join([self.way, *(f"{k}{v:g}" for k, v in parts.items()), f"seed{self.seed}"])


LEVEL = 1 / 8000  # of recordings, in their unit
REGULARISED = {"weight_decay": 0.1, "dropout": 0.1}
RATES = {"made": (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2), "transformer": (2e-3, 4e-3, 8e-3)}


def tried(way: str, problem: str, model: str) -> tuple[Settings, ...]:
    """What is tried: of paths, which never repeat, high rates; of recordings, on which a MADE overfits, low ones.

    The problems' noise ends far above the structure of the smoothest paths, and above a level of recordings. There NCML
    also tries more of a batch at t = 0, and noise that ends at their structure; maximum likelihood tries as many more
    rates and regularisations.
    """
    plain = Settings(way, TUNING_SEED)
    if problem.startswith("paths"):
        rates = RATES[model]
        settings = [replace(plain, learning_rate=rate) for rate in rates]
        if problem == "paths-1e-8" and way in NOISY:
            usual = replace(plain, learning_rate=1.6e-2 if model == "made" else 8e-3)
            settings += [replace(usual, p_zero=p) for p in (0.4, 0.7)]
            settings += [replace(usual, p_zero=p, sigma_min=1e-4) for p in (0.15, 0.4, 0.7)]
        elif problem == "paths-1e-8":
            usual = replace(plain, learning_rate=1.6e-2 if model == "made" else 4e-3)
            settings += [replace(plain, learning_rate=rate) for rate in (rates[0] / 2, 2 * rates[-1])]
            settings += [replace(usual, learning_rate=math.sqrt(2.0) * usual.learning_rate)]
            settings += [replace(usual, weight_decay=0.1), replace(usual, dropout=0.1)]
        noisy = [replace(plain, sigma=s, learning_rate=8e-3 if model == "made" else 4e-3) for s in (0.02, 0.05, 0.1)]
        if model == "made":
            noisy.append(replace(plain, sigma=0.05))
    else:
        rates = (1e-3, 2e-3) if model == "made" else (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
        usual = replace(plain, learning_rate=2e-3 if model == "made" else 8e-3)
        settings = [replace(plain, learning_rate=rate) for rate in rates]
        if way in NOISY:
            settings.append(replace(usual, p_zero=0.4))
        elif model == "made":
            settings.append(replace(plain, learning_rate=4e-3))
        if model == "made" and way == "ncml":
            usual = replace(plain, **REGULARISED, p_zero=0.4, sigma_min=LEVEL)
            settings += [replace(usual, p_zero=p) for p in (0.15, 0.4, 0.7)]
            settings += [replace(usual, learning_rate=rate) for rate in (4e-3, 8e-3, 1.6e-2)]
        elif model == "made" and way == "ml":
            settings += [replace(plain, weight_decay=0.1, dropout=d) for d in (0.05, 0.2)]
            settings += [replace(plain, learning_rate=rate, **REGULARISED) for rate in (4e-3, 8e-3, 1.6e-2, 3.2e-2)]
        noisy = [replace(usual, sigma=s) for s in (0.02, 0.05, 0.1)]
    if way == "fixed":
        return tuple(noisy)
    return (*settings, replace(plain, **REGULARISED))


@dataclass(frozen=True)
class Size:
    """What a model of a name is, how long it is trained, and how many windows are drawn, directly and in two parts."""

    steps: int
    batch: int
    width: int
    layers: int
    draws: int = 50_000
    refined: int = 4000


SIZES = {
    ("made", "paths"): Size(3000, 256, 256, 2),
    ("made", "recordings"): Size(3000, 256, 512, 2),
    ("transformer", "paths"): Size(1500, 32, 64, 3, refined=2000),
    ("transformer", "recordings"): Size(1500, 32, 64, 3, refined=2000),
}


def at_length(size: Size, length: int) -> Size:
    """Fewer draws of windows beyond 64, by their ratio and, in two parts, by its root: each value costs a pass."""
    share = min(1.0, 64 / length)
    return replace(size, draws=int(size.draws * share), refined=int(size.refined * math.sqrt(share)))
