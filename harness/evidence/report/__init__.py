"""The report of a run: one HTML file that needs nothing else, or text.

:mod:`~harness.evidence.report.record` says what a report is made of;
:mod:`~harness.evidence.report.page` and :mod:`~harness.evidence.report.text` are pure functions of that.
"""
