"""gpytorch, without what torch says of it. (Ours.)

gpytorch's linear algebra is scripted by ``torch.jit``. torch 2.15 shows everybody who imports it that scripting is
deprecated, which a user of this package can do nothing about, and which would end a run that treats warnings as errors.
"""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "`torch.jit")
    import gpytorch

__all__ = ["gpytorch"]
