"""How long PyTorch's threads on a CPU spin while they wait for one another.

Imported before torch, because OpenMP reads its environment when it is loaded. By default (GNU
OpenMP) waiting threads spin for about a millisecond, and if other programs keep a core busy, each
step waits many times over for a thread that spins on the other one. They sleep instead after about
the length of a short parallel region. If any of OpenMP's variables is set, nothing is changed.
"""

import os

set_by_user = any(name.startswith(("OMP_", "GOMP_", "KMP_")) for name in os.environ)
VARIABLES = {} if set_by_user else {"GOMP_SPINCOUNT": "20000"}
os.environ.update(VARIABLES)
