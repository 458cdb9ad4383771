"""How long PyTorch's threads on a CPU spin while they wait for one another.

Import this before torch, because OpenMP reads its environment when it is loaded. By default (GNU
OpenMP) a waiting thread spins for about a millisecond. While other programs keep the cores busy, a
step then takes seconds now and then. Here waiting threads sleep after about the length of a short
parallel region. If any OpenMP variable is already set, nothing changes.
"""

import os

set_by_user = any(name.startswith(("OMP_", "GOMP_", "KMP_")) for name in os.environ)
VARIABLES = {} if set_by_user else {"GOMP_SPINCOUNT": "20000"}
os.environ.update(VARIABLES)
