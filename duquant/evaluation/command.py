"""``python cli.py evaluate``: tasks, MMLU and perplexities of one model, or of two side by side.

Everything that can be wrong is found first: names, files, tokenizer, texts. Then every task is
measured alone and written down, so the same command continues after an interruption.
"""

import sys

from rich.console import Console

from duquant.evaluation.request import EvaluationRequest
from duquant.json_output import one_document
from duquant.reporting.report import write_report
from duquant.reporting.run_contents import read_run
from duquant.run_lock import RunLock


class Evaluate(EvaluationRequest):  # noqa: D101
    __doc__ = EvaluationRequest.__doc__  # the subcommand's help

    def __call__(self) -> None:
        """Check, measure, write and show."""
        from duquant.evaluation.evaluation import Evaluation  # imports lm-eval, which takes seconds

        evaluation, run = Evaluation(self, Console(file=sys.stderr)), self.run_directory
        has_report = run is not None and run in self.output.resolve().parents
        if run is not None and has_report:
            read_run(run)  # what its report cannot show is refused before the work
        with one_document(self.json) as document, RunLock(self.output) as lock:
            lock.acquire()
            document.update(evaluation.run(Console()))
            if run is not None and has_report:
                write_report(run, [read_run(run)])
