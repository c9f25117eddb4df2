"""`python -m dl2_runtime`: serve as DL2_ROLE says."""

import sys

from dl2_runtime.roles import main

sys.exit(main())
