"""The command `merge`: plan, show, write, show what it did."""

from __future__ import annotations

import sys

from gptoss_ft.merge.estimate import speeds
from gptoss_ft.merge.options import MergeOptions
from gptoss_ft.merge.plan import plan_merge
from gptoss_ft.merge.report import plan_lines, summary_lines, tensor_lines
from gptoss_ft.merge.stream import MergeResult, merge


def run_merge(options: MergeOptions) -> int:
    """Merges, or with `dry_run` shows what would be done; returns the exit code.

    1 means that rounding loses more than the limit and the checkpoint was left unfinished.

    Raises:
        MergeError: nothing was written, or the disk is full.
    """
    plan = plan_merge(options)
    print("\n".join(plan_lines(plan)))
    if options.dry_run:
        print("", *tensor_lines(plan, speeds(plan)), sep="\n")
        return 0
    return _show(merge(plan))


def _show(result: MergeResult) -> int:
    if result.statistics:
        print("", *summary_lines(result.statistics), "", sep="\n")
    if result.problems:
        print(
            f"not finished: {result.out} lacks its manifest",
            *result.problems,
            sep="\n",
            file=sys.stderr,
        )
        return 1
    if result.was_complete:
        print(f"{result.out} holds this merge already, whole")
    else:
        print(f"merged checkpoint written to {result.out}")
    return 0
