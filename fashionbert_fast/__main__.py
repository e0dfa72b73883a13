"""`python -m fashionbert_fast`, which launchers start as a module."""

import sys

from fashionbert_fast.cli import main

sys.exit(main())
