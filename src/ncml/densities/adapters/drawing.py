"""Samplers of other libraries, which know neither the generator nor the dtype of a density."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["library_draws"]


@contextmanager
def library_draws(generator: torch.Generator | None, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Let a library that only knows torch's global state draw from ``generator``, in ``dtype``.

    With no generator the global random state itself is used, and advances; otherwise it is left untouched, and
    ``generator`` advances whether or not what runs draws from it. The default dtype is put back afterwards.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        if generator is None:
            yield
            return
        before = generator.get_state()
        seed = int(torch.randint(0, 2**62, (), generator=generator, device=generator.device))
        after = generator.get_state()
        generator.set_state(before)  # who draws from it directly draws what it would have drawn without us
        cuda = device.type == "cuda"
        # Not torch.manual_seed, which would also reseed devices whose state is not restored.
        own = torch.cuda.default_generators[device.index or 0] if cuda else torch.default_generator
        with torch.random.fork_rng(devices=[device] if cuda else []):
            own.manual_seed(seed)
            yield
        if torch.equal(generator.get_state(), before):
            generator.set_state(after)
    finally:
        torch.set_default_dtype(default)
