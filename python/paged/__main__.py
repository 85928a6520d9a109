# SPDX-License-Identifier: Apache-2.0
"""`python -m paged` is the `paged` command."""

import sys

from paged.cli import main

if __name__ == "__main__":
    sys.exit(main())
