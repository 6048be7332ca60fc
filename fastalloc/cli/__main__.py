"""``python -m fastalloc.cli``, the same as ``fastalloc``."""

import sys

from . import main

sys.exit(main())
