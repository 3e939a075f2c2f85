"""`python -m dartune`."""

from dartune.cli import main

raise SystemExit(main())
