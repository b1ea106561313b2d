"""Where material of others lies that tests read but that the repository does not hold.

``DUQUANT_ASSETS`` names the folder; without it, it is looked for beside the repository.
"""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
ASSETS = Path(os.environ.get("DUQUANT_ASSETS", REPOSITORY.parent / "shared"))
