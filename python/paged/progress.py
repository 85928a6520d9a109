# SPDX-License-Identifier: Apache-2.0
"""Progress bars on stderr."""

from tqdm import tqdm


class ProgressBar(tqdm):  # type: ignore[misc]
    """tqdm without the monitor thread that it would start and leave behind in the application."""

    monitor_interval = 0
