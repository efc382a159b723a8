"""The report of a run: one page to look at before believing the picks.

`write_report` makes ``report.html`` from what a run or a pick leaves on disk. What it shows of a
volume is read block by block (`views`), so its memory does not grow with the tomogram.
"""

from .write import report_of_run, write_report

__all__ = ["report_of_run", "write_report"]
