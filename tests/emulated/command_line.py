"""``cli.py`` in a process that knows the emulated device: ``--trainer.accelerator emulated``.

python -m tests.emulated.command_line fit -c configs/quickstart.yaml …
"""

import cli
from tests.emulated import backend, trainer

if __name__ == "__main__":
    backend.install()
    trainer.install()
    cli.main()
