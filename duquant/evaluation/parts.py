"""An evaluation's directory: every finished part is a file, so that an interruption loses one part.

::

    evaluation.json               what is evaluated: model, tasks, data, seeds (no paths)
    parts/model/arc_easy.json     a finished part, with the log-likelihoods of every item
    parts/compared/arc_easy.json  the same of the model it is compared with
    results.json                  the result, once all parts are there
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from duquant.durable import write_json
from duquant.evaluation.statistics import Measurement
from duquant.model.checkpoint import read_json
from duquant.modules.run_description import compare_runs

DESCRIPTION, RESULTS = "evaluation.json", "results.json"


class EvaluationDirectory:
    """Finished parts of one evaluation.

    Args:
        path: the directory; it need not exist.
        description: what decides the numbers.

    Raises:
        ValueError: if it holds something else, or another evaluation; nothing is written yet.
    """

    def __init__(self, path: Path, description: dict[str, Any]) -> None:
        self.path = path
        self.description = description
        file = path / DESCRIPTION
        if file.is_file():
            differences = compare_runs(read_json(file), description)
            if differences:
                raise ValueError(
                    f"{path} holds another evaluation ({'; '.join(differences)}); choose another "
                    f"--output_dir"
                )
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ValueError(f"{path} is not empty and no evaluation; choose another --output_dir")

    def claim(self) -> None:
        """Say what is evaluated here."""
        if not (self.path / DESCRIPTION).is_file():
            write_json(self.path / DESCRIPTION, self.description)

    def has(self, variant: str, name: str) -> bool:
        """Whether a part is finished."""
        return self._file(variant, name).is_file()

    def part(self, variant: str, name: str, measure: Callable[[], Measurement]) -> Measurement:
        """A finished part, or one that is measured and written now."""
        file = self._file(variant, name)
        if not file.is_file():
            write_json(file, measure().to_dict())
        try:
            return Measurement.from_dict(read_json(file))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is damaged; delete it to measure it again") from error

    def write_results(self, results: dict[str, Any]) -> Path:
        """Write the result in one step."""
        write_json(self.path / RESULTS, results)
        return self.path / RESULTS

    def _file(self, variant: str, name: str) -> Path:
        return self.path / "parts" / variant / f"{quote(name, safe='')}.json"
