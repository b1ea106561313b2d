"""``python -m duquant.lm_eval ARGUMENTS``: lm-eval's own command line, with duquant registered.

lm-eval looks for no packages that add quantization methods, and transformers neither; so somebody
has to import duquant before the model is loaded. All arguments are lm-eval's own:

    python -m duquant.lm_eval --model hf --model_args pretrained=RUN/model --tasks piqa

``python cli.py evaluate`` measures the same tasks, checks more, and continues where it was stopped.
"""

from duquant.export.hugging_face import register
from duquant.extras import MissingExtraError, require_extra
from duquant.terminal import complain


def main() -> None:
    """Register and hand over; without lm-eval leave with status 2."""
    try:
        require_extra("evaluate", "duquant.lm_eval")
    except MissingExtraError as error:
        complain(str(error))
        raise SystemExit(2) from None
    from lm_eval.__main__ import cli_evaluate

    register()
    cli_evaluate()


if __name__ == "__main__":
    main()
