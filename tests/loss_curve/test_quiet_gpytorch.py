import subprocess
import sys

import pytest

PROGRAM = """
import sys, warnings
warnings.filterwarnings("error", "`torch.jit")
import {module}
assert "gpytorch" in sys.modules
warnings.warn("`torch.jit` is what others may still be told of")
"""


@pytest.mark.parametrize("module", ["autowu_hf.loss_curve.gpytorch_gp", "autowu_hf.autolrs.proposal"])
def test_a_run_that_treats_warnings_as_errors_bears_gpytorchs_import(module):
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(module=module)], capture_output=True, text=True)
    assert done.stderr.endswith("UserWarning: `torch.jit` is what others may still be told of\n")
