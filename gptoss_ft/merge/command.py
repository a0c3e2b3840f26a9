"""The command `merge`: plan, show, write, show what it did."""

from __future__ import annotations

import sys

from gptoss_ft.context import Context, Outcome, Say
from gptoss_ft.merge.estimate import speeds
from gptoss_ft.merge.options import MergeOptions
from gptoss_ft.merge.plan import plan_merge
from gptoss_ft.merge.report import plan_lines, summary_lines, tensor_lines
from gptoss_ft.merge.stream import MergeResult, merge


def run(options: MergeOptions, context: Context) -> Outcome:
    """Merges, or with `dry_run` shows what would be done.

    Exit code 1 means that rounding loses more than the limit and that the checkpoint was left
    unfinished.

    Raises:
        MergeError: nothing was written, or the disk is full.
    """
    plan = plan_merge(options)
    context.say("\n".join(plan_lines(plan)))
    if options.dry_run:
        context.say("\n".join(["", *tensor_lines(plan, speeds(plan))]))
        return Outcome()
    return Outcome(_show(merge(plan), context.say))


def _show(result: MergeResult, say: Say) -> int:
    if result.statistics:
        say("\n".join(["", *summary_lines(result.statistics), ""]))
    if result.problems:
        print(
            f"not finished: {result.out} lacks its manifest",
            *result.problems,
            sep="\n",
            file=sys.stderr,
        )
        return 1
    if result.was_complete:
        say(f"{result.out} holds this merge already, whole")
    else:
        say(f"merged checkpoint written to {result.out}")
    return 0
