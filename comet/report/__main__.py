"""`python -m comet.report RUN...`: a self-contained HTML page about runs, their scores and their experiments."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from comet.configuration import CommandParser, run_command
from comet.corpus.encodings import conversion
from comet.durable import write_text
from comet.processes import say
from comet.report.reading import read

PROGRAM = "comet.report"


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    given = _parser().parse_args(argv)
    if given.maps < 0:
        raise ValueError(f"--maps: got {given.maps}, expected 0 or more")
    output = Path(given.output)
    if output.is_dir():
        raise ValueError(
            f"--output: {output} is a folder; give a file, such as {output / 'report.html'}"
        )
    if not output.absolute().parent.is_dir():
        raise ValueError(f"--output: {output.absolute().parent} is not a folder")
    sentences = _sentences(given.sentences)
    material = read([Path(folder) for folder in given.runs])
    from comet.report.page import Options, page  # needs matplotlib and jinja2

    options = Options(given.title, given.published, given.maps, sentences, given.measure)
    text = page(material, options, say)
    write_text(output, text)
    say(f"report  {output} ({len(text.encode()) / 1e6:.1f} MB)")


def _parser() -> CommandParser:
    parser = CommandParser(
        prog=f"python -m {PROGRAM}",
        description="One self-contained HTML page: scores against teacher, floor and published figures, what each "
        "system costs, loss curves, attention maps, and what was run on what.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folders of distillation, adaptation, fine-tuning or evaluation, or of an experiment; "
        "what comes first is what the page leads with",
    )
    parser.add_argument(
        "--output", default="report.html", metavar="FILE", help="default: report.html"
    )
    parser.add_argument("--title", help="of the page")
    parser.add_argument(
        "--published",
        metavar="NAME",
        help="published figures to set beside the scores; default: those of the task, none leaves them out",
    )
    parser.add_argument(
        "--maps",
        type=int,
        default=2,
        metavar="N",
        help="of how many distillations attention maps are drawn (default: 2)",
    )
    parser.add_argument(
        "--sentences",
        metavar="FILE",
        help="sentences for attention maps, a language code, a tab and a sentence on each line; "
        "default: from the toy corpus",
    )
    parser.add_argument(
        "--measure",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run each kind of model for its latency and memory (default: yes)",
    )
    return parser


def _sentences(file: str | None) -> dict[str, str]:
    if file is None:
        return {}
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"--sentences: cannot read {file}: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--sentences: {file} is not in UTF-8; {conversion(file)}") from error
    found = {}
    for number, line in enumerate(lines, 1):
        language, tab, text = line.partition("\t")
        if line.strip() and not (tab and language.strip() and text.strip()):
            raise ValueError(f"--sentences: {file} line {number} is not LANGUAGE<TAB>SENTENCE")
        if line.strip():
            found[language.strip()] = text.strip()
    return found


if __name__ == "__main__":
    run_command(main, PROGRAM, alone=True)
