"""`python -m accel` is the same as `accel`."""

import sys

from accel.cli import main

sys.exit(main())
