"""The studies and benchmarks behind REPORT.md."""

import common.threads  # noqa: F401 (before torch)
