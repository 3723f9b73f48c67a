"""`run.py analyze`: does what is missing of an analysis, and writes and prints all of it."""

import sys
from collections.abc import Sequence

from dreamer_mpc import config as settings
from dreamer_mpc.analysis.analysis import MEASURES, Analysis
from dreamer_mpc.evaluation.subject import Subject
from dreamer_mpc.report.console import table_console
from dreamer_mpc.report.panels import analysis_table
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.intervals import FEWEST
from dreamer_mpc.util.program import program
from dreamer_mpc.util.stop import INTERRUPTED


def main(args: Sequence[str]) -> int:
    """Measure checkpoints: rows.csv, summary.csv, table.csv, picture."""
    checkpoint = settings.option(args, "checkpoint")
    what = settings.option(args, "what")
    first = None if checkpoint is None or what is None else Subject.load(checkpoint)
    default = first and settings.with_planners_of(
        first.trained, settings.AnalyzeConfig(checkpoint=(checkpoint,), what="ablate")
    )
    config = settings.parse(settings.AnalyzeConfig, args, default, prog=program("analyze"))
    if config.policy.sample and not MEASURES[config.what].plays_itself:
        print(f"{config.what} takes the policy's mode: --policy.sample says nothing here")
    analysis = Analysis.of(config, [first, *map(Subject.load, config.checkpoint[1:])])
    for note in analysis.ledger.notes:
        print(note)
    try:
        analysis.play()
    except KeyboardInterrupt:
        how = "without --overwrite " if config.overwrite else ""
        print(f"\ninterrupted: the same command {how}goes on from here", file=sys.stderr)
        return INTERRUPTED
    summary = analysis.summary()
    if not summary:
        raise UserError(
            "nothing could be measured, as episodes end too early: lower --states, --every, --depth, or the planner's "
            "horizon"
        )
    paths = analysis.write(summary)
    measure = next(iter(analysis.measures.values()))
    world = f" Episodes {world}." if (world := analysis.world().removeprefix(", ")) else ""
    caption = f"{measure.caption}.{world} In brackets: 95 % intervals, Student's t, from {FEWEST} episodes on."
    table_console(170).print(analysis_table(measure.table(summary), caption))
    print(f"wrote {', '.join(map(str, paths))}")
    there = len(analysis.ledger.made_with["checkpoints"])
    if there > (asked := len(analysis.subjects)):
        print(f"summary and picture are of {asked} of {there} checkpoints in the folder; rows.csv has all")
    return 0
