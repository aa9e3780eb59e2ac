from __future__ import annotations

import gc
import pickle
import sys
import weakref
from pathlib import Path

import torch
from samples import examples
from tiny import TinyClassifier

import autowu_hf.clars
from autowu_hf import CLARS

sys.path.append(str(Path(__file__).parents[1] / "scripts"))


def test_hooks_do_not_keep_the_optimizer_alive():
    for exact in (False, True):
        model = TinyClassifier().double()
        optimizer = CLARS(model.parameters(), lr=0.5, adapt=True, per_sample_model=model if exact else None)
        alive = weakref.ref(optimizer)
        del optimizer
        gc.collect()
        assert alive() is None
        model(**examples(4))["loss"].backward()


def test_hooks_in_old_pickles_load_and_do_nothing():
    old = b"cautowu_hf.clars\n_Hook\n)R."  # what the first release wrote: the class's name and a call of it
    hook = pickle.loads(old)
    assert type(hook) is autowu_hf.clars._Hook
    assert hook(torch.ones(1)) is None
    assert type(pickle.loads(pickle.dumps(hook))) is autowu_hf.clars._Hook
